"""The handlers that fsqueue calls: `embed`, `ingest` (as `rag_ingestion`) and `compact`.

`embed_claim` computes one claim of either of the first two, and `ingest_request` checks what a
broadcast to `rag_ingestion` asks for.
"""
