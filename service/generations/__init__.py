"""Which model answers, and the change to another."""
