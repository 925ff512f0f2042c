"""Arrays drawn as pictures."""
