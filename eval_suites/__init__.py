"""Evaluation suites over SAEBench, one file each.

`suite.py` says what a suite is, `inputs/` holds what suites are given, `saebench/` is the only place
that reaches into SAEBench, and `evaluation/` evaluates SAEs by suites into one folder.
"""
