"""Inputs: FASTA, documents and contigs are read, counted, cut, and pinned by content.

`fasta` and `documents` read files; `fasta_scan` and `chunks` divide them; `segments` and
`chunk_ranges` name a part so that a worker reads exactly what was planned; `division` and
`document_plan` make claims of them; `contigs` prepares contigs for two models. Nothing here imports
torch.
"""
