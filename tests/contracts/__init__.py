"""The contracts of job.ports, as suites that every adapter and every fake inherits."""
