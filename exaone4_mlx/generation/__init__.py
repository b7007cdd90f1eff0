"""From a prompt to the events of one reply: sampling, decoding, prompt caches, the worker thread."""
