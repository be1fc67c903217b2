"""Tests of the checkpoint stores."""
