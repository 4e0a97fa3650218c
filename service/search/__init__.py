"""Searches and their results: scores, pages, moments, diversity, near-duplicates."""
