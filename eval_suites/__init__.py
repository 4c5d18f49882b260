"""Evaluation suites over SAEBench, one file each.

`suite.py` says what a suite is; `saebench.py` is the only file that touches SAEBench.
"""
