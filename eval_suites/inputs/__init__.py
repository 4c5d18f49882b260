"""What the suites are given: models, SAEs, data."""
