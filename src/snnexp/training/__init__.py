"""Training: assemble, train, test and record one run, or several runs stacked as one."""
