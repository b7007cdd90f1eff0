"""Where text and tensors meet: sampling, decoding, and the events of a reply."""
