"""The command line: one file for each command."""

INTERRUPTED = 130  # the exit code after Ctrl-C
