"""potstill: the command line, the Python client and the one-command local stack; it speaks HTTP and starts processes."""
