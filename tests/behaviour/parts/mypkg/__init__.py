"""Parts that a user has written, for tests: each is named by a config in ``../conf``."""
