"""Commands of the command line that are not about a reply: their flags, and what they print."""
