"""ids -> logits: the configuration, the caches, the network, and the files they come from."""
