"""Take a store's vectors to where people have theirs: LanceDB, Chroma, faiss, or one file.

    fsqueue embed export STORE TARGET --to lancedb|chroma|faiss|h5|parquet|npz

`export` asks the target which of the store's ids it has, and passes on those that it lacks
(`embed/store/walk.py`), so that a second export adds only what is new. One exporter writes; workers
never do. `road` says what a road is; each of the others is one, and the only door to its library:

    lance    a LanceDB database, a directory or whatever lancedb.connect() takes: committed by parts
    chroma   a Chroma database, a directory or the URL of a server: added by parts
    flat     a faiss index and, beside it, TARGET.jsonl with the record of each row
    files    one h5, parquet or npz file, written anew and moved into place

An id is the store's key, in hexadecimal. Nothing at a target is changed or removed: what it has
more than the store stays there, and what belongs to another model is refused.
"""
