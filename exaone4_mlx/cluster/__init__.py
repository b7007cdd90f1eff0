"""Several machines that compute one model: their connections, and what ends them together."""
