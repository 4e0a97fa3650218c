"""Evaluate search and recommendations on one library, with no labels but the captions and categories that it has.

measures.py     figures of one query each, from vectors; NumPy only
bootstrap.py    intervals of figures and of their differences
library.py      vectors of a generation, read from the database
queries.py      the user's own queries and judgements
curves.py       figures over weights, fusions, aggregations and numbers of frames
evaluate.py     composition: the whole evaluation, side by side for several generations

Nothing here decodes a clip, except `--copies`. Nothing changes the library.
"""
