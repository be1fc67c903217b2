"""Servers and adapters of ours that stand in for, or in front of, the real ones in tests."""
