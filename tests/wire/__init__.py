"""Tests of the whole program at the wire: real processes against a real API server, some through a proxy that fails."""
