"""The mechanisms: one file each, a pure function on tensors and a thin plugin.

`pairs`, `order_report` and `start` hold what several of them share.
"""
