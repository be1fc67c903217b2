"""What a run costs, beside what people would use instead: `nox -s bench`."""
