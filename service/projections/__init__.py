"""Maps of the embedding space: how points are laid out, placed and kept."""
