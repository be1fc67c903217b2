"""What people would use instead: the Python that a developer would write, and kopf."""
