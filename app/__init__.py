"""The desktop chat: `python -m app`."""
