"""What fsqueue calls: the handlers `embed`, `rag_ingestion` and `compact`.

`claim` computes one claim, `ingest_request` checks what a broadcast asks for, and `calibrate`
measures how fast this machine does what the `embed` handler would do.
"""
