"""Specifications of parts: the values of their arguments, and which parts are compatible."""
