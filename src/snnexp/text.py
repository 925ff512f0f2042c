"""How values and texts are shown to a person."""

import re
from collections.abc import Iterable


def format_value(value: object) -> str:
    """``value`` as a config file would write it, short enough for one line and without control characters."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, list):
        value = f"[{', '.join(map(format_value, value))}]"
    text = one_line(words[value] if value is None or isinstance(value, bool) else str(value) or "''")
    return text if len(text) <= 40 else text[:37] + "..."


def snake_case(name: str) -> str:
    """The name of a class as that of a choice: ``MaxMembrane`` is ``max_membrane``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def format_number(value: float) -> str:
    """A measured value for a person: four significant digits, or all before the point of one that can still be read."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def one_line(text: str) -> str:
    """``text`` in one line that a terminal shows as it is: what cannot be printed is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text.split())
    )


def truncate(text: str) -> str:
    """``text`` in one :func:`one_line` of at most 190 characters."""
    text = one_line(text)
    return text if len(text) <= 190 else f"{text[:187]}..."


def suggest(word: str, options: Iterable[str], prefix: str = "") -> str:
    """A hint for a mistyped ``word``: the option that looks like it, behind the ``prefix``, else all of them."""
    import difflib

    known = {option.lower(): option for option in sorted(options, reverse=True)}
    near = difflib.get_close_matches(word.lower(), sorted(known), n=1)
    return f"did you mean {prefix}{known[near[0]]}?" if near else list_options(known.values())


def list_options(options: Iterable[str]) -> str:
    """All options, or as many as a line holds."""
    text = ", ".join(sorted(options)) or "none"
    return f"there are {text if len(text) <= 110 else text[:110].rpartition(',')[0] + ', ...'}"
