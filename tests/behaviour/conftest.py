"""The fixtures of the tests of behaviour."""

from shell import shell, snnexp  # noqa: F401
