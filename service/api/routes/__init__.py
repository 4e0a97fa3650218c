"""HTTP resources, one module for each.

A handler parses the request, calls one function of the core, and returns its result.
"""
