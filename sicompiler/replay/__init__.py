"""A run replayed without a device: what it allocates and releases, and what the allocator makes of that."""
