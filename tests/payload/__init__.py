"""Tests of the data of a message."""
