"""Generations: which model serves searches, and the switch to another model."""
