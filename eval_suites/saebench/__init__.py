"""SAEBench, run in this process."""
