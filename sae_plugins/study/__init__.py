"""`sae-plugins study`: does a method help? Arms x sparsities x seeds, and verdicts at equal L0."""
