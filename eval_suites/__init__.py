"""Evaluation suites over SAEBench, one file each.

`suite.py` says what a suite is. `inputs/` holds what suites are given, `saebench/` is the only
place where anything of SAEBench is replaced, and `evaluation/` applies suites to SAEs.
"""
