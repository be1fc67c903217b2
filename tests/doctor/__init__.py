"""Tests of `doctor`: what it says of a good set-up, and of one that is broken, for each kind of breaking."""
