"""Helpers of the tests. Each module says in its name what it holds; no test imports another test."""
