"""An evaluation: SAEs times suites, into one folder."""
