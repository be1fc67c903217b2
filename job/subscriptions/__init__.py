"""Where messages are taken from."""
