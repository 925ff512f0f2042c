"""What is on disk: runs, checkpoints, and what tells where they come from."""
