"""The mechanisms: one file each, a pure function on tensors and a thin plugin."""
