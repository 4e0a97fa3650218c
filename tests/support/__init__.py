"""Shared helpers of the tests. Each module's name says what it holds; no test module imports another."""
