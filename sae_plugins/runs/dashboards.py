"""What the command line and the logs say alike of dashboards; nothing slow is imported."""

from __future__ import annotations

TRACKIO_PROJECT = "sae-plugins"
"""What trackio calls the runs that belong together, unless they say something else."""
