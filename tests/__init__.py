"""Tests: the pure parts alone, adapters at the wire, and the whole program against a real API server."""
