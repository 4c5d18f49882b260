"""The fast step: SAELens' mathematics in fewer operations, equal to rounding."""
