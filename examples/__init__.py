"""The program at work."""
