"""``buffers=shared``: large items of workers on this machine go through memory that both have."""
