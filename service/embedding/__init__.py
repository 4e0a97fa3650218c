"""CLIP: which model, on which device, and its vectors of images and texts."""
