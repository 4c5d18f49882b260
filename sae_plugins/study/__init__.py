"""`sae-plugins study`: does a method help? Arms x sparsities x seeds, and verdicts at equal L0."""

ENOUGH_SEEDS = 5
"""The default; with fewer, a verdict carries a warning."""
