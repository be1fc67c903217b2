"""Tests of `job.run`."""
