"""Evaluation suites, one file each; all but one of them over SAEBench.

`suite.py` says what a suite is, `registry.py` finds them by name, `probing.py` holds what those
that probe labelled texts share, and `ablation.py` what SCR and TPP do. `inputs/` holds what suites
are given, `saebench/` is the only place where anything of SAEBench is replaced, and `evaluation/`
applies suites to SAEs.
"""

PRESETS = ("canonical", "quick", "paper")
"""Named settings of all suites; the first are the defaults, which are SAEBench's."""
DATA = ("world", "hub")
"""What data may be besides a folder."""
