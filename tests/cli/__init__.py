"""Tests of what people see: refusals, help, the summary line."""
