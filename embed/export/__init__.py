"""Copy a store's vectors to where people use them: LanceDB, Chroma, faiss, or one file.

    fsqueue embed export STORE TARGET --to lancedb|chroma|faiss|h5|parquet|npz

`export_space` asks the target which of the store's keys are missing there, and adds those
(`embed/store/scan.py`), so a second export adds only what is new. `target` defines what a target
is; each of the others is one, and the only door to its library:

    lancedb_table  a table of a LanceDB database, in a directory or anything lancedb.connect() takes
    chroma         a collection of a Chroma database, in a directory or on a server
    faiss_index    a faiss index and, beside it, TARGET.jsonl with the record of each row
    files          one h5, parquet or npz file, written anew and moved into place

An id is the store's key, in hexadecimal. Nothing at a target is changed or removed: additional
vectors stay there, and a target of another model is refused.
"""
