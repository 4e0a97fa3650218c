"""Clips that are drawn: for the demo, for tests, and for the recipe of the small model."""
