"""Several machines that compute one model: their connections, and what ends them together."""

TIMEOUT = 60.0  # seconds without a sign of life, or without progress, after which a rank is lost
