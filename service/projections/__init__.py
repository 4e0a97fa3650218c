"""Projections (maps) of the embedding space: fit them, place new points, store and encode them."""
