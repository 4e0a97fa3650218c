"""Queries and their answers: scores, pages, moments, diversity, near-duplicates."""
