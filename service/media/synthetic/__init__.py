"""Draw synthetic clips for the demo, the tests and the training of the small model."""
