"""Run directories and checkpoints on disk, and their provenance."""
