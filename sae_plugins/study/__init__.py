"""`sae-plugins study`: does a method help? Arms x sparsities x seeds, and verdicts at equal L0."""

ENOUGH_SEEDS = 5
"""The default; with fewer, a verdict carries a warning."""
PILOT_SEED = 10_000
"""Of the pilots, whatever the study's seeds are: another seed must not give other coefficients."""
