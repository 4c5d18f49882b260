"""Evaluation suites over SAEBench; they arrive with `sae-plugins evaluate`."""
