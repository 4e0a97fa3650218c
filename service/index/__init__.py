"""The vector index: rows of vectors, searched by inner product. An index is derived; the catalogue is the truth.

    rows.py         which row is whose, which are alive, in which category; running moments; what engines share
    flat.py         exact: FAISS compares a query with every vector
    compressed.py   for large libraries: FAISS scans short codes of all, the best are compared exactly

A video with picture vector v and caption vector t is the row [v ; t ; 0], one without a caption [v ; 0 ; 1]. Every
question that is linear in v and t is then one inner product with another query vector:

    [a q_v ; b q_t ; c]     c: what a video gets for having no caption

which is the weighted score for any weights, in one search. A frame is the row v.
"""
