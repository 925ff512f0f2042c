"""The command line. Nothing is imported before a verb needs it."""

from snnexp.cli.main import main

__all__ = ["main"]
