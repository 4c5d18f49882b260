"""What a run trains on, and the folder it leaves."""
