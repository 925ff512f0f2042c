"""Sweeps and searches: many runs, in worker processes, in stacks, or on a cluster."""
