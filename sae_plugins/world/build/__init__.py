"""What made `data/`: a checkout has it, and the wheel has not."""
