"""Database rows: the schema, the engine with its dialects, and one module per group of tables."""
