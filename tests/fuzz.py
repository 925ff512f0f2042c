"""Random overrides for tests and scripts."""

import random
from collections.abc import Iterator

KEYS = [
    "neuron.beta",
    "seed",
    "name",
    "data.root",
    "network.hidden",
    "published",
    "hydra.job.name",
    "x",
    "",
    "neuron",
    "é",
]
PIECES = [
    *(
        "=",
        ",",
        ":",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "'",
        '"',
        "\\",
        "\\'",
        "\\\\",
        "$",
        "${",
        "${seed}",
        "${.beta}",
        "~",
        "+",
    ),
    *(
        "@",
        "/",
        ".",
        "..",
        "#",
        "%",
        "&",
        "*",
        "?",
        "!",
        "|",
        "<",
        ">",
        "`",
        "^",
        ";",
        " ",
        "\t",
        "\n",
        "\r",
        "\0",
        "\x1b[2J",
    ),
    *(
        "nan",
        "inf",
        "-1",
        "0",
        "1",
        "1e999",
        "0x1",
        "1_0",
        "null",
        "true",
        "???",
        "???.a",
        "_target_",
        "_args_",
        "_here_",
    ),
    *("choice(", "range(", "interval(", "glob(*)", "sort(", "shuffle(", "tag(", "int(", "str(", "json_str("),
    *("é", "größe", "雪", "\u202e", "\ud800", "\U0001f9e0", "\u00a0", "a" * 300, "9" * 400, "[" * 200, "{a:" * 60),
    *(
        "oc.env:HOME",
        "oc.decode:",
        "oc.select:",
        "hydra:",
        "leaky",
        "snnexp.neurons.Leaky",
        "os.system",
        "-m",
        "--",
        "file://",
    ),
]


def overrides(count: int, seed: int = 0) -> Iterator[list[str]]:
    """Yield ``count`` lists of one to three override strings, reproducible by ``seed``."""
    chance = random.Random(seed)
    for _ in range(count):
        yield [_override(chance) for _ in range(chance.choice([1, 1, 1, 2, 3]))]


def _override(chance: random.Random) -> str:
    value = "".join(chance.choice(PIECES) for _ in range(chance.choice([0, 1, 1, 2, 3, 5, 8, 20])))
    if chance.random() < 0.2:
        return value
    return chance.choice(["", "", "", "+", "++", "~"]) + chance.choice(KEYS) + "=" + value
