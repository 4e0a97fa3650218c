"""Rows: the schema, its engine and dialects, and a module for each group of tables."""
