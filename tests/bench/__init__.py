"""Benchmarks, run by hand. The last line of output is JSON. Compare ratios within one run, not seconds of two runs."""
