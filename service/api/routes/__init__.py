"""The HTTP resources, a module each. A handler parses, calls one function of the core, and answers."""
