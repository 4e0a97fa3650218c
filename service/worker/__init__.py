"""The worker, which runs jobs, and its supervisor."""
