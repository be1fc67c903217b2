"""Tests of what messages are taken from."""
