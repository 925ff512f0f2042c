"""Parts of a user: one module per part, and a config for each in ``conf``."""
