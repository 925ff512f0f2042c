"""The page about one run: configuration, status, metrics, network activity and wall time."""

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
    f"An estimate: {PJ_PER_ADDITION} pJ for each addition caused by a spike, and another {PJ_PER_PRODUCT} pJ for "
    "each multiplication where the inputs are values instead of spikes (32-bit floating point, 45 nm; Horowitz, "
    "“Computing's energy problem”, ISSCC 2014). Memory access, neuron updates and communication are not included, and "
    "nothing was measured on a device. “Without spikes” is a non-spiking network of the same layers without feedback, "
    "evaluated once for each step with a new input."
)
MAX_CLASSES = 20
"""Tables of more classes are collapsed."""
WITHOUT_SPIKES = "without spikes"
COLUMN_TITLES = {"firing_rate": "spikes per neuron and step"}
"""Column titles of layer metrics that differ from their names."""


def report(path: Path, folder: Path) -> Path:
    """Write the page about the run in ``path`` to ``folder``; return the path of the page.

    Missing and corrupt files are reported on the page.

    Raises:
        CheckpointError: the folder of figures is a link.
    """
    run = Run(path.resolve())
    facts = run.facts()
    notes: list[str] = []
    cfg = _read(run.config, {}, notes)
    rows: list[dict[str, Any]] = []
    # keeps the rows before a corrupt one
    _read(lambda: rows.extend(row for row in run.metrics() if isinstance(row, dict)), None, notes)
    init, last, test = (_read(partial(run.arrays, name), {}, notes) for name in ("init", "last", "test"))
    if not (init or last):
        notes.append(
            "No snapshot of the network was recorded (logger.draw_every_n_epochs=0, or an older version of snnexp)."
        )
    elif not last:
        notes.append("The run ended before its first snapshot, so the network activity is shown before training only.")
    if not np.array_equal(test.get("step", -1), last.get("step", -1)):
        # the test statistics date from before a resume
        test = {}
    pictures = _try_build(lambda: _pictures(facts, init, last, test, notes), {}, notes)

    def select(*names: str) -> list[Block]:
        return [pictures[name] for name in names if name in pictures]

    changed = _try_build(lambda: _changed(facts, cfg, notes), ("", []), notes)
    sections = {
        "Configuration": lambda: _configuration(facts, cfg, *changed),
        "Results": lambda: _result(facts, cfg, *changed),
        "Training": lambda: curves.training(rows, cfg, facts.stopped_early),
        "Network activity": lambda: select("trajectory", "predictions", "output_membrane", "spike_raster"),
        "Confusion matrix": lambda: [*select("confusion"), *_by_class(facts, test)],
        "Neuron parameters": lambda: [*select("parameters"), *_constant(init, last, pictures.get("parameters"))],
        "Spikes and operations": lambda: [*select("firing_rates"), *_operations(facts, last)],
        "Gradients": lambda: [*select("gradient_norms"), *_norms(init, last)],
        "Wall time": lambda: _time(facts),
        "Full config": lambda: _full_config(cfg),
    }
    content = [Section(title, _try_build(build, [], notes)) for title, build in sections.items()]
    if not rows:
        notes.append("metrics.jsonl has no rows, so there are no training curves.")
    if bool((last or init).get("hidden_unknown")):
        notes.append("The network is a module that returns only its readout, so its layers were not recorded.")
    if notes:
        content.insert(0, Section("Missing data", [Text(note) for note in dict.fromkeys(notes)]))
    headline = _try_build(lambda: _headline(facts), facts.status, notes)
    return page.write(folder, f"{facts.experiment or facts.id}: {headline}", _facts(facts), content)


def _try_build(build: Callable[[], Any], default: Any, notes: list[str]) -> Any:
    """Return ``build()``; if it fails on a corrupt file, add a note and return ``default``."""
    try:
        return build()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        notes.append(f"A part of this page cannot be built from the files of the run: {type(error).__name__}, {error}.")
        return default


def _read(read: Callable[[], Any], default: Any, notes: list[str]) -> Any:
    """Return ``read()``; if a file is missing or corrupt, add a note and return ``default``."""
    try:
        return read()
    except CheckpointError as error:
        notes.append(f"{error}.")
    except OSError as error:
        notes.append(f"{error.filename}: {error.strerror}.")
    return default


def _pictures(facts: Facts, init: Any, last: Any, test: Any, notes: list[str]) -> dict[str, Picture]:
    """Return the pictures that can be drawn by name."""
    now = "after training" if facts.status == "finished" else f"after step {int(last['step'])}" if last else ""
    pictures = [_try_build(draw, None, notes) for draw in drawing_functions({"before training": init, now: last}, test)]
    return {picture.name: picture for picture in pictures if picture is not None}


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
        ("status", ended),
        ("started", facts.started and f"{facts.started:%Y-%m-%d %H:%M:%S %z}"),
        ("seed", facts.seed),
        ("device", f"{record.get('device')}, {_threads(record.get('threads'))}, kernel {record.get('kernel')}"),
        (
            "versions",
            ", ".join(" ".join(map(str, pair)) for pair in versions.items()) if isinstance(versions, dict) else None,
        ),
        (
            "commit",
            f"{git.get('commit') or git.get('reason')}{', with uncommitted changes' if git.get('dirty') else ''}"
            if isinstance(git, dict)
            else None,
        ),
        ("resumed at step", ", ".join(map(str, resumed)) if isinstance(resumed, list) else None),
    ]
    return [(name, value) for name, value in lines if value is not None]


def _threads(count: Any) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _changed(
    facts: Facts, cfg: Mapping[str, Any], notes: list[str]
) -> tuple[str, list[tuple[str, str | None, str | None]]]:
    """Return the recipe, and each key in which the run differs from it with both values; overrides come first.

    The recipe is the current one, which may differ from that of the version that wrote the run. Keys that do not affect
    results are skipped.
    """
    choice = recipes.known_recipe(cfg, facts.overrides)
    if choice is None:
        notes.append(
            f"There is no recipe named {text.format_value(recipes.recipe_name(cfg, facts.overrides))} to compare with."
        )
        return "", []
    overridden = {key_of(override) for override in facts.effective_overrides}
    changed = recipes.differences(cfg, facts.overrides) if cfg else {}
    rows = []
    for key in sorted(changed, key=lambda key: key not in overridden):
        default, actual = (None if value is None else text.format_value(value) for value in changed[key])
        rows.append((key, default, actual))
    return f"experiment={choice}" if choice else "the defaults", rows


def _configuration(
    facts: Facts, cfg: Mapping[str, Any], recipe: str, changed: Sequence[tuple[str, str | None, str | None]]
) -> list[Block]:
    blocks: list[Block] = []
    if facts.effective_overrides:
        blocks.append(Text(config.command(facts.effective_overrides, cfg, origin(facts).folders), command=True))
    if changed:
        caption = "Differences from the current recipe: first the overrides, then the values derived from them."
        return [*blocks, Table(["key", recipe, "this run"], changed, caption, "differences")]
    return [*blocks, *([Text(f"This is {recipe} without changes.")] if cfg and recipe else [])]


def _result(
    facts: Facts, cfg: Mapping[str, Any], recipe: str, changed: Sequence[tuple[str, str | None, str | None]]
) -> list[Block]:
    if not facts.metrics:
        return [Text(f"There are no test results: the run is {facts.status}.")]
    published = recipes.published(cfg, facts.overrides)
    others = recipes.decisive(key for key, *_ in changed)
    columns = ["measure", "measured", *(["published", "difference"] if published else []), "meaning"]
    rows: list[list[Any]] = []
    layers: dict[str, dict[str, float]] = {}
    meanings = _meanings(facts, cfg)
    for name, value in facts.metrics.items():
        split, measure, layer = split_name(name)
        if layer and split == "test":
            layers.setdefault(layer, {})[measure] = value
        elif not layer:
            expected = published.get(name)
            reference = [expected, None if expected is None else value - expected] if published else []
            rows.append([name, value, *reference, meanings.get(measure) or meanings.get(measure.partition("/")[0])])
    blocks: list[Block] = [Table(columns, rows, "Metrics of each split, with the final weights.", "result")]
    blocks += [Text(f"{facts.single_class_note}.")] if facts.single_class_note else []
    from_source = cfg.get("published")
    known = ", ".join(name for name in from_source if name in facts.metrics) if isinstance(from_source, dict) else ""
    if known and (others or not recipe):
        differs = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
        reason = f"this run differs from it in {differs}" if recipe else "there is no recipe to compare this run with"
        blocks.append(Text(f"The recipe has a published value for {known}; it is not comparable: {reason}."))
    if layers:
        measured = [name for name in LAYER_METRICS if any(name in values for values in layers.values())]
        caption = (
            "Metrics of each layer. Dead neurons never fire, saturated neurons fire in every step of every sample; "
            "synops are the additions caused by incoming spikes, per sample."
        )
        cells = [[layer, *(values.get(name) for name in measured)] for layer, values in layers.items()]
        blocks.append(Table(["layer", *(COLUMN_TITLES.get(name, name) for name in measured)], cells, caption, "layers"))
    return blocks


def _by_class(facts: Facts, test: Mapping[str, Any]) -> list[Block]:
    """Return a table of precision, recall and F1 score of each class; None for a zero denominator."""
    if "confusion" not in test:
        return []
    counts = test["confusion"]
    correct, labels, predicted = np.diagonal(counts), counts.sum(1), counts.sum(0)
    numbers = [str(k) for k in range(len(counts))]
    named = len(facts.classes) == len(counts) and facts.classes != numbers
    names = facts.classes if named else [None] * len(counts)
    rows = [
        [k, name, _ratio(hits, positive), _ratio(hits, own), _ratio(2 * hits, positive + own), int(own)]
        for k, (name, hits, positive, own) in enumerate(zip(names, correct, predicted, labels, strict=True))
    ]
    columns = ["class", "name", "precision", "recall", "F1 score", "labels"]
    caption = (
        "Metrics of each class on the test split: the fraction of its predictions that are correct (precision), and "
        "the fraction of its samples that are predicted correctly (recall)."
    )
    return [Table(columns, rows, caption, "classes", folded=len(rows) > MAX_CLASSES)]


def _ratio(numerator: Any, denominator: Any) -> float | None:
    return float(numerator / denominator) if denominator else None


def _meanings(facts: Facts, cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the descriptions of metrics by name, with the decoder for the accuracy."""
    decoder = decoding.decoder_name(cfg, facts.record.get("decoder"))
    by = f" (decoder {decoder})" if decoder else ""
    known = {**decoding.measure_descriptions(cfg), **MEANINGS, "accuracy": f"{MEANINGS['accuracy']}{by}"}
    # each step has a label
    of_steps = {name: known[name].replace("samples", "steps of samples") for name in ("accuracy", "undecided")}
    return {**known, **of_steps} if decoder == "each_step" else known


def _constant(init: Mapping[str, Any], last: Mapping[str, Any], picture: Picture | None) -> list[Block]:
    """Return a table of the neuron parameters with a single value, which are not drawn."""
    named = {key: np.unique(values) for key, values in with_prefix(last or init, "parameter/").items()}
    drawn = {name.partition(": ")[2] for name in (picture.data if picture else {})}
    rows = [
        [*key.split("/"), float(values[0])]
        for key, values in named.items()
        if values.size == 1 and key.replace("/", " ") not in drawn
    ]
    caption = "Equal for all neurons of a layer" + (", and not changed by training." if init and last else ".")
    return [Table(["layer", "parameter", "value"], rows, caption, "constant_parameters")] if rows else []


def _operations(facts: Facts, snapshot: Mapping[str, Any]) -> list[Block]:
    counted = with_prefix(snapshot, "connections/")
    spikes = {layer: facts.metrics.get(f"test/synops/{layer}") for layer in counted}
    unknown = [str(layer) for layer in snapshot.get("layers", ()) if layer not in counted]
    if unknown and facts.metrics.get("test/loss") is not None:
        return [Text(f"Synaptic operations into {', '.join(unknown)} are unknown, so no energy is estimated.")]
    if not spikes or None in spikes.values():
        return []
    rows: list[list[Any]] = []
    dense = 0.0
    for index, (layer, connections) in enumerate(counted.items()):
        # earlier versions recorded sequential networks only
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
    colors = [*[style.BLUE] * (len(rows) - 2), style.INK, style.GRAY]
    drawn = network.bars({str(row[0]): row[3] for row in rows}, "estimated energy per sample (nJ)", colors)
    caption = (
        "Estimated energy of one sample: for the synapses into each layer (blue), in total (dark), and for the same "
        f"network {WITHOUT_SPIKES} (gray)."
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
        [Table(columns, rows, "Norms of the trained parameters, and of their gradients on the probe batch.", "norms")]
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
    total = f"{float(wall_s['total']):.1f} s in total{since}"
    rate = facts.record.get("samples_per_s")
    total += f", {rate:,.0f} samples per second during training." if isinstance(rate, (int, float)) else "."
    data = {"what": [*spent], "seconds": [*spent.values()]}
    return [Text(total), Picture("time", network.bars(spent, "seconds"), "Wall time in seconds.", data)]


def _full_config(cfg: Mapping[str, Any]) -> list[Block]:
    rows = [[key, text.format_value(value)] for key, value in config.flat(cfg).items()]
    return [Table(["key", "value"], rows, f"{len(rows)} keys", "config", folded=True)] if rows else []
