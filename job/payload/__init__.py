"""The data of a message."""
