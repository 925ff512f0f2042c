"""Format values and text for messages."""

import re
from collections.abc import Iterable


def format_value(value: object) -> str:
    """Format ``value`` as in a YAML file, in at most 40 characters without control characters."""
    names = {None: "null", True: "true", False: "false"}
    if isinstance(value, list):
        value = f"[{', '.join(map(format_value, value))}]"
    text = one_line(names[value] if value is None or isinstance(value, bool) else str(value) or "''")
    return text if len(text) <= 40 else text[:37] + "..."


def snake_case(name: str) -> str:
    """Convert a class name to snake case: ``MaxMembrane`` becomes ``max_membrane``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def format_number(value: float) -> str:
    """Format a metric: four significant digits, or a whole number with thousands separators from 10,000 up to 1e9."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def one_line(text: str) -> str:
    """Collapse whitespace to single spaces and escape non-printable characters."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


def truncate(text: str) -> str:
    """Format ``text`` as :func:`one_line` does, cut to at most 190 characters."""
    text = one_line(text)
    return text if len(text) <= 190 else f"{text[:187]}..."


def suggest(word: str, options: Iterable[str], prefix: str = "") -> str:
    """Return a hint for a mistyped ``word``: the closest option, after ``prefix``, or else all options."""
    import difflib

    known = {option.lower(): option for option in sorted(options, reverse=True)}
    near = difflib.get_close_matches(word.lower(), sorted(known), n=1)
    return f"did you mean {prefix}{known[near[0]]}?" if near else list_options(known.values())


def list_options(options: Iterable[str]) -> str:
    """List the options, in at most about 110 characters."""
    text = ", ".join(sorted(options)) or "none"
    return f"there are {text if len(text) <= 110 else text[:110].rpartition(',')[0] + ', ...'}"
