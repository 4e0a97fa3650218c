"""Benchmarks: run by hand, each prints one JSON line last. Compare ratios of one run, not seconds of two."""
