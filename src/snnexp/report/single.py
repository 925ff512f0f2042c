"""The page about one run: what was run, how it ended, what it measured, what the network does, where the time went."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from snnexp import config, text
from snnexp.config import decoding, recipes
from snnexp.errors import CheckpointError
from snnexp.figures import network, style
from snnexp.figures.picture import Picture
from snnexp.figures.snapshots import drawing_functions, with_prefix
from snnexp.record.facts import Facts
from snnexp.record.measures import LAYER_METRICS, MEANINGS, main_metric, split_name
from snnexp.record.names import key_of
from snnexp.record.origin import origin
from snnexp.record.run import Run
from snnexp.report import curves, page
from snnexp.report.page import Block, Section, Table, Text

PJ_PER_ADDITION, PJ_PER_PRODUCT = 0.9, 3.7
"""Picojoules of an addition and a multiplication of 32-bit floating-point numbers in 45 nm (Horowitz, ISSCC 2014)."""
ENERGY = (
    f"An estimate: {PJ_PER_ADDITION} pJ for each addition that a spike causes, and {PJ_PER_PRODUCT} pJ more for each "
    "multiplication where values come in instead of spikes (32-bit floating point, 45 nm; Horowitz, “Computing's "
    "energy problem”, ISSCC 2014). Memory, the neurons' own updates and communication are not counted, and no device "
    "was measured. “Without spikes” is a network of the same layers that multiplies each input, once for each step "
    "that brings another one, without feedback."
)
MAX_CLASSES = 20
"""Rows of a table of classes that is not folded."""
WITHOUT_SPIKES = "without spikes"
IN_WORDS = {"firing_rate": "spikes per neuron and step"}
"""Measures of layers, where a table calls them otherwise."""


def report(path: Path, folder: Path) -> Path:
    """Write the page about the run in ``path`` into ``folder``; returns the page.

    What is missing or damaged is told on the page.

    Raises:
        CheckpointError: ``folder`` has a link in the place of its figures.
    """
    run = Run(path.resolve())
    facts = run.facts()
    told: list[str] = []
    cfg = _read(run.config, {}, told)
    rows: list[dict[str, Any]] = []
    # those before a damaged one are there
    _read(lambda: rows.extend(row for row in run.metrics() if isinstance(row, dict)), None, told)
    init, last, test = (_read(partial(run.arrays, name), {}, told) for name in ("init", "last", "test"))
    if not (init or last):
        told.append("No snapshot of the network was recorded (logger.draw_every_n_epochs=0, or an older version).")
    elif not last:
        told.append("The run ended before its first drawing, so what the network does is shown before training alone.")
    if not np.array_equal(test.get("step", -1), last.get("step", -1)):
        # what a run added up to before it went on
        test = {}
    drawn = _guarded(lambda: _drawn(facts, init, last, test, told), {}, told)

    def named(*names: str) -> list[Block]:
        return [drawn[name] for name in names if name in drawn]

    changed = _guarded(lambda: _changed(facts, cfg, told), ("", []), told)
    sections = {
        "What was run": lambda: _what_was_run(facts, cfg, *changed),
        "Result": lambda: _result(facts, cfg, *changed),
        "Training": lambda: curves.training(rows, cfg, facts.stopped_early),
        "What the network does": lambda: named("trajectory", "predictions", "output_membrane", "spike_raster"),
        "Which class is taken for which": lambda: [*named("confusion"), *_by_class(facts, test)],
        "Neuron parameters": lambda: [*named("parameters"), *_shared(init, last, drawn.get("parameters"))],
        "Spikes and operations": lambda: [*named("firing_rates"), *_operations(facts, last)],
        "Gradients": lambda: [*named("gradient_norms"), *_norms(init, last)],
        "Where the time went": lambda: _time(facts),
        "The whole config": lambda: _whole(cfg),
    }
    built = [Section(title, _guarded(build, [], told)) for title, build in sections.items()]
    if not rows:
        told.append("There are no rows in metrics.jsonl, so there are no curves.")
    if bool((last or init).get("hidden_unknown")):
        told.append("The network is a module that returns its readout alone: nothing is known of layers within it.")
    if told:
        built.insert(0, Section("What is missing", [Text(sentence) for sentence in dict.fromkeys(told)]))
    headline = _guarded(lambda: _headline(facts), facts.status, told)
    return page.write(folder, f"{facts.experiment or facts.id}: {headline}", _facts(facts), built)


def _guarded(build: Callable[[], Any], otherwise: Any, told: list[str]) -> Any:
    """What ``build`` gives; ``otherwise`` where a file holds what no run writes, and a sentence for the page."""
    try:
        return build()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told.append(f"A part of this page cannot be made of what the run holds: {type(error).__name__}, {error}.")
        return otherwise


def _read(read: Callable[[], Any], otherwise: Any, told: list[str]) -> Any:
    """What ``read`` gives; else a sentence for the page, and ``otherwise``."""
    try:
        return read()
    except CheckpointError as error:
        told.append(f"{error}.")
    except OSError as error:
        told.append(f"{error.filename}: {error.strerror}.")
    return otherwise


def _drawn(facts: Facts, init: Any, last: Any, test: Any, told: list[str]) -> dict[str, Picture]:
    """Each picture that can be drawn, by its name."""
    now = "after training" if facts.status == "finished" else f"after step {int(last['step'])}" if last else ""
    drawn = [_guarded(draw, None, told) for draw in drawing_functions({"before training": init, now: last}, test)]
    return {picture.name: picture for picture in drawn if picture is not None}


def _headline(facts: Facts) -> str:
    if facts.status != "finished":
        return facts.status
    name = main_metric(facts.metrics)
    return "finished" if name is None else f"{name} {page.cell(facts.metrics[name])}"


def _facts(facts: Facts) -> list[tuple[str, Any]]:
    record = facts.record
    ended = f"{facts.status}: {facts.reason}" if facts.reason else facts.status
    if facts.last_position:
        ended += f" (last logged at {facts.last_position})"
    if facts.stopped_early:
        ended += f" ({facts.stopped_early})"
    git, versions, resumed = record.get("git"), record.get("versions"), record.get("resumed_at_step")
    lines = [
        ("run", str(facts.path)),
        ("how it ended", ended),
        ("started", facts.started and f"{facts.started:%Y-%m-%d %H:%M:%S %z}"),
        ("seed", facts.seed),
        ("on", f"{record.get('device')}, {_threads(record.get('threads'))}, kernel {record.get('kernel')}"),
        (
            "versions",
            ", ".join(" ".join(map(str, pair)) for pair in versions.items()) if isinstance(versions, dict) else None,
        ),
        (
            "commit",
            f"{git.get('commit') or git.get('reason')}{', with changes' if git.get('dirty') else ''}"
            if isinstance(git, dict)
            else None,
        ),
        ("resumed at step", ", ".join(map(str, resumed)) if isinstance(resumed, list) else None),
    ]
    return [(name, value) for name, value in lines if value is not None]


def _threads(count: Any) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _changed(
    facts: Facts, cfg: Mapping[str, Any], told: list[str]
) -> tuple[str, list[tuple[str, str | None, str | None]]]:
    """The recipe's name, and each key in which the run differs from it, with both values; what was typed comes first.

    Where a run comes from another version, its recipe may have been another too. Keys that decide nothing that is
    computed are left out.
    """
    choice = recipes.known_recipe(cfg, facts.overrides)
    if choice is None:
        told.append(
            f"There is no recipe {text.format_value(recipes.recipe_name(cfg, facts.overrides))} here to compare with."
        )
        return "", []
    typed = {key_of(override) for override in facts.effective_overrides}
    changed = recipes.differences(cfg, facts.overrides) if cfg else {}
    rows = []
    for key in sorted(changed, key=lambda key: key not in typed):
        before, now = (None if value is None else text.format_value(value) for value in changed[key])
        rows.append((key, before, now))
    return f"experiment={choice}" if choice else "the defaults", rows


def _what_was_run(
    facts: Facts, cfg: Mapping[str, Any], recipe: str, changed: Sequence[tuple[str, str | None, str | None]]
) -> list[Block]:
    blocks: list[Block] = []
    if facts.effective_overrides:
        blocks.append(Text(config.command(facts.effective_overrides, cfg, origin(facts).folders), command=True))
    if changed:
        caption = "What differs from the recipe as it is here: first what was typed, then what follows from it."
        return [*blocks, Table(["key", recipe, "this run"], changed, caption, "differences")]
    return [*blocks, *([Text(f"This is {recipe}, with nothing changed.")] if cfg and recipe else [])]


def _result(
    facts: Facts, cfg: Mapping[str, Any], recipe: str, changed: Sequence[tuple[str, str | None, str | None]]
) -> list[Block]:
    if not facts.metrics:
        return [Text(f"There are no test results: the run is {facts.status}.")]
    shown = recipes.published(cfg, facts.overrides)
    others = recipes.decisive(key for key, *_ in changed)
    columns = ["measure", "measured", *(["published", "difference"] if shown else []), "meaning"]
    rows: list[list[Any]] = []
    layers: dict[str, dict[str, float]] = {}
    meanings = _meanings(facts, cfg)
    for name, value in facts.metrics.items():
        split, measure, layer = split_name(name)
        if layer and split == "test":
            layers.setdefault(layer, {})[measure] = value
        elif not layer:
            figure = shown.get(name)
            beside = [figure, None if figure is None else value - figure] if shown else []
            rows.append([name, value, *beside, meanings.get(measure) or meanings.get(measure.partition("/")[0])])
    blocks: list[Block] = [Table(columns, rows, "Of each split, with the last weights.", "result")]
    blocks += [Text(f"{facts.single_class_note}.")] if facts.single_class_note else []
    stated = cfg.get("published")
    known = ", ".join(name for name in stated if name in facts.metrics) if isinstance(stated, dict) else ""
    if known and (others or not recipe):
        differs = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        reason = f"this run differs from it in {differs}" if recipe else "this run has no recipe here to compare with"
        blocks.append(Text(f"The recipe has a published figure for {known}; it is not comparable, for {reason}."))
    if layers:
        measured = [name for name in LAYER_METRICS if any(name in values for values in layers.values())]
        caption = (
            "By layer. Dead neurons fire for no sample, saturated ones in every step of all; synops are the additions "
            "that arriving spikes cause, per sample."
        )
        cells = [[layer, *(values.get(name) for name in measured)] for layer, values in layers.items()]
        blocks.append(Table(["layer", *(IN_WORDS.get(name, name) for name in measured)], cells, caption, "layers"))
    return blocks


def _by_class(facts: Facts, test: Mapping[str, Any]) -> list[Block]:
    """Precision, recall and F1 score of each class, with its samples; None where there is nothing to divide by."""
    if "confusion" not in test:
        return []
    counts = test["confusion"]
    met, labels, predicted = np.diagonal(counts), counts.sum(1), counts.sum(0)
    numbers = [str(k) for k in range(len(counts))]
    named = len(facts.classes) == len(counts) and facts.classes != numbers
    names = facts.classes if named else [None] * len(counts)
    rows = [
        [k, name, _quotient(hits, taken), _quotient(hits, own), _quotient(2 * hits, taken + own), int(own)]
        for k, (name, hits, taken, own) in enumerate(zip(names, met, predicted, labels, strict=True))
    ]
    columns = ["class", "name", "precision", "recall", "F1 score", "labels"]
    caption = (
        "By class, over the test split: how many of those that are taken for it are of it (precision), and how many of "
        "its own are taken for it (recall)."
    )
    return [Table(columns, rows, caption, "classes", folded=len(rows) > MAX_CLASSES)]


def _quotient(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _meanings(facts: Facts, cfg: Mapping[str, Any]) -> dict[str, str]:
    """What measures mean, by name, and by which decoder a sample is assigned to a class."""
    decoder = decoding.decoder_name(cfg, facts.record.get("decoder"))
    by = f", by {decoder}" if decoder else ""
    known = {**decoding.measure_descriptions(cfg), **MEANINGS, "accuracy": f"{MEANINGS['accuracy']}{by}"}
    # which has a label for each of them
    of_steps = {name: known[name].replace("samples", "steps of samples") for name in ("accuracy", "undecided")}
    return {**known, **of_steps} if decoder == "each_step" else known


def _shared(init: Mapping[str, Any], last: Mapping[str, Any], drawn: Picture | None) -> list[Block]:
    """The neuron parameters that are not drawn: a picture of one value shows nothing."""
    named = {key: np.unique(values) for key, values in with_prefix(last or init, "parameter/").items()}
    there = {name.partition(": ")[2] for name in (drawn.data if drawn else {})}
    rows = [
        [*key.split("/"), float(values[0])]
        for key, values in named.items()
        if values.size == 1 and key.replace("/", " ") not in there
    ]
    caption = "The same for all neurons of a layer" + (", and not changed by training." if init and last else ".")
    return [Table(["layer", "parameter", "value"], rows, caption, "constant_parameters")] if rows else []


def _operations(facts: Facts, snapshot: Mapping[str, Any]) -> list[Block]:
    counted = with_prefix(snapshot, "connections/")
    spikes = {layer: facts.metrics.get(f"test/synops/{layer}") for layer in counted}
    unknown = [str(layer) for layer in snapshot.get("layers", ()) if layer not in counted]
    if unknown and facts.metrics.get("test/loss") is not None:
        return [
            Text(f"Synaptic operations in front of {', '.join(unknown)} are not known, and no energy is estimated.")
        ]
    if not spikes or None in spikes.values():
        return []
    rows: list[list[Any]] = []
    dense = 0.0
    for index, (layer, connections) in enumerate(counted.items()):
        # records of earlier versions know chains alone
        first = connections * snapshot["input_steps"] if index == 0 else 0
        values = float(snapshot.get(f"products/{layer}", first))
        additions = float(spikes[layer] or 0)
        energy = (additions * PJ_PER_ADDITION + values * (PJ_PER_ADDITION + PJ_PER_PRODUCT)) / 1e3
        rows.append([layer, additions, values, energy])
        dense += float(connections)
    rows.append(["all layers", *(sum(row[column] for row in rows) for column in (1, 2, 3))])
    dense *= max(1, int(snapshot["input_steps"]))
    rows.append([WITHOUT_SPIKES, 0.0, dense, dense * (PJ_PER_ADDITION + PJ_PER_PRODUCT) / 1e3])
    columns = ["layer", "additions by spikes", "products of values", "energy (nJ)"]
    colors = [*[style.BLUE] * (len(rows) - 2), style.INK, style.GREY]
    drawn = network.bars({str(row[0]): row[3] for row in rows}, "estimated energy per sample (nJ)", colors)
    caption = (
        "Estimated energy of one sample: by the layer that spikes or values arrive at (blue), their sum (dark), and "
        f"that of the same network {WITHOUT_SPIKES} (grey)."
    )
    data = {"layer": [row[0] for row in rows], "energy (nJ)": [row[3] for row in rows]}
    return [Picture("energy", drawn, caption, data), Table(columns, rows, "Per sample.", "operations"), Text(ENERGY)]


def _norms(init: Mapping[str, Any], last: Mapping[str, Any]) -> list[Block]:
    names = list(with_prefix(last or init, "norm/"))
    rows = [
        [name, *(_number(side.get(key + name)) for key in ("norm/", "gradient_norm/") for side in (init, last))]
        for name in names
    ]
    columns = ["parameter", "norm before", "after", "gradient norm before", "after"]
    return (
        [Table(columns, rows, "Norms of what is trained, and of its gradient on the probe batch.", "norms")]
        if rows
        else []
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _time(facts: Facts) -> list[Block]:
    wall_s = facts.record.get("wall_s")
    if not isinstance(wall_s, dict) or not wall_s.get("total"):
        return []
    spent = {name: float(value) for name, value in wall_s.items() if name != "total"}
    since = ", since the run was resumed" if facts.record.get("resumed_at_step") else ""
    told = f"{float(wall_s['total']):.1f} s in all{since}"
    rate = facts.record.get("samples_per_s")
    told += f", {rate:,.0f} samples per second while training." if isinstance(rate, (int, float)) else "."
    data = {"what": [*spent], "seconds": [*spent.values()]}
    return [Text(told), Picture("time", network.bars(spent, "seconds"), "Where the time went, in seconds.", data)]


def _whole(cfg: Mapping[str, Any]) -> list[Block]:
    rows = [[key, text.format_value(value)] for key, value in config.flat(cfg).items()]
    return [Table(["key", "value"], rows, f"{len(rows)} keys", "config", folded=True)] if rows else []
