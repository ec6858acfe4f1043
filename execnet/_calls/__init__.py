"""Functions that are called in workers: what is asked, and what comes of it."""
