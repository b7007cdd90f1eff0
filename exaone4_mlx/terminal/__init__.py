"""The interactive chat in a terminal, and its plain form for pipes."""
