"""The process that takes jobs, and its supervisor."""
