"""The settings of a run, from flags, recipes and methods."""
