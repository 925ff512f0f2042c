"""What an argument of a part may be, and which parts fit each other."""
