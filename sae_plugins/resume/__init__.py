"""Checkpoints, and what a run needs to go on from one."""
