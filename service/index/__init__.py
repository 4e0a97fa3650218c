"""Vector indexes, searched by inner product.

The database is the source of truth. Every index is derived from the database and can be rebuilt.

    layout.py       content of a row
    base.py         base class: row numbers, row owners, rows that are alive, categories, running statistics
    flat.py         exact: FAISS compares the query with every vector
    compressed.py   for large libraries: FAISS scans short codes of all rows, then the best rows are compared exactly
    sync.py         keeps a FAISS index equal to the database
    snapshot.py     keeps a FAISS index on disk between two starts
    milvus/         the same with Milvus instead of FAISS
    factory.py      chooses between FAISS and Milvus
    graph.py        nearest-neighbour graphs

A video with visual vector v and text vector t is the row x = [v ; t ; 0]. A video without a caption is the row
x = [v ; 0 ; 1]. Every score that is linear in v and t is therefore one inner product <q, x> with the query vector

    q = [a q_v ; b q_t ; c]

The last number, c, is what a video without a caption receives in place of b <q_t, t>. One search therefore computes
the weighted score for any weights. In an index of frames, the row of a frame is v alone.
"""
