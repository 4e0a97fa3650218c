"""CLIP: how a model is loaded, which device runs it, and its vectors of images and texts."""
