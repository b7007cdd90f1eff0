"""The network: configuration, caches, layers, heads, and loading."""
