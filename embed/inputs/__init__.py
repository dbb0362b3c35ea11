"""Inputs: FASTA files and documents, read, divided among claims, and pinned by content.

FASTA: `fasta` reads files, `fasta_scan` divides one into blocks while planning, and `segments`
names a run of blocks so that a worker reads exactly what was planned. Documents likewise:
`documents` reads files of text, `chunking` finds where to cut one, and `chunks` names a run of
chunks. `claims` groups either into claims, and finds a claim's inputs in its payload. `contigs`
prepares contigs for two models. Nothing here imports torch.
"""
