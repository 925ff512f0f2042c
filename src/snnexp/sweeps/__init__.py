"""Many runs: a ledger of points, processes that train them, stacks of them, and searches."""
