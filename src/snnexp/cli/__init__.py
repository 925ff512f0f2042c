"""The command line. Each subcommand imports only what it needs."""

from snnexp.cli.main import main

__all__ = ["main"]
