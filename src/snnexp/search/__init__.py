"""A study of Optuna that chooses the points of a sweep."""
