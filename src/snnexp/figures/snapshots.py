"""Pictures of the network activity on the probe batch; see ``snnexp.training.probe`` for the format of a snapshot."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from snnexp.figures import network
from snnexp.figures.picture import Picture
from snnexp.figures.style import STEP_LABEL, Array

Snapshot = Mapping[str, Any]


def drawing_functions(snapshots: Mapping[str, Snapshot], test: Snapshot) -> list[Callable[[], Picture | None]]:
    """Return the functions that draw the pictures; each returns None without data for its picture.

    Args:
        snapshots: snapshots by title, newest last; empty ones are skipped.
        test: statistics of the test split; empty if there was no test.
    """
    columns = {title: snapshot for title, snapshot in snapshots.items() if snapshot}
    if not columns:
        return [lambda: _rates(test)]
    newest, time = _newest(columns)
    return [
        lambda: _rates(test),
        lambda: _raster(columns, time),
        lambda: _membrane(columns, time),
        lambda: _trajectory(columns, time),
        lambda: _predictions(newest),
        lambda: _confusion(newest, test),
        lambda: _distributions({title: _parameters(columns, title) for title in columns}),
        lambda: _gradients(columns, time),
    ]


def live_pictures(snapshots: Mapping[str, Snapshot], test: Snapshot) -> list[Picture]:
    """Draw the pictures shown during training: of the newest snapshot, with older ones only where drawing is cheap.

    The arguments are those of :func:`drawing_functions`.
    """
    columns = {title: snapshot for title, snapshot in snapshots.items() if snapshot}
    newest, time = _newest(columns)
    now = {title: snapshot for title, snapshot in columns.items() if snapshot is newest}
    drawn = [
        _raster(now, time),
        _membrane(now, time),
        _trajectory(columns, time),
        _predictions(newest),
        _confusion(newest, test),
        _distributions({title: _moved(columns, title) for title in columns}),
    ]
    return [picture for picture in drawn if picture is not None]


def _newest(columns: Mapping[str, Snapshot]) -> tuple[Snapshot, str]:
    """Return the newest snapshot, and the label of its time axis, with the step in ms if it is known."""
    newest = [*columns.values()][-1]
    return newest, f"time step ({1e3 * float(newest['dt']):g} ms)" if "dt" in newest else STEP_LABEL


def _some_steps(snapshot: Snapshot) -> str:
    shown = len(snapshot["membrane"])
    every = int(snapshot.get("num_steps", shown))
    return f" The first {shown:,} of {every:,} steps." if shown < every else ""


def with_prefix(snapshot: Snapshot, prefix: str) -> dict[str, Any]:
    """Return the entries whose keys start with ``prefix``, without it: ``{"a/b": 1}`` gives ``{"b": 1}`` for ``a/``."""
    return {key.removeprefix(prefix): value for key, value in snapshot.items() if key.startswith(prefix)}


def _raster(columns: Mapping[str, Snapshot], time: str) -> Picture | None:
    drawn = {
        title: {
            layer: (spikes, snapshot[f"neurons/{layer}"], int(snapshot[f"size/{layer}"]))
            for layer, spikes in with_prefix(snapshot, "spikes/").items()
        }
        for title, snapshot in columns.items()
    }
    if not any(drawn.values()):
        return None
    some = [
        f"{len(neurons)} of {size:,} neurons of {layer}"
        for layer, (_, neurons, size) in [*drawn.values()][-1].items()
        if len(neurons) < size
    ]
    caption = "Spikes of one sample" + (f" ({', '.join(some)} are shown)." if some else ".")
    caption += _some_steps([*columns.values()][-1])
    table: list[tuple[Array, ...]] = []
    for title, layers in drawn.items():
        for layer, (spikes, neurons, _) in layers.items():
            step, index = np.nonzero(spikes)
            table.append((np.repeat(title, len(step)), np.repeat(layer, len(step)), step, neurons[index]))
    whole = map(np.concatenate, zip(*table, strict=True))
    data = dict(zip(("when", "layer", "step", "neuron"), whole, strict=True))
    return Picture("spike_raster", network.spike_raster(drawn, time), caption, data)


def _membrane(columns: Mapping[str, Snapshot], time: str) -> Picture:
    newest = [*columns.values()][-1]
    readout = str(newest["layers"][-1])
    chosen: list[int] = []
    name = ""
    if "label" in newest:
        label, population = int(newest["label"][0]), int(newest.get("population", 1))
        chosen = np.flatnonzero(newest[f"neurons/{readout}"] // population == label).tolist()
        name = f"{'outputs' if population > 1 else 'output'} of its class, {label}" if chosen else ""
    drawn = {
        title: (snapshot["membrane"], snapshot.get(f"spikes/{readout}"), snapshot.get("threshold"))
        for title, snapshot in columns.items()
    }
    data = _by_step(
        {
            f"{title}: output {k}": membrane[:, k]
            for title, (membrane, _, _) in drawn.items()
            for k in range(membrane.shape[1])
        }
    )
    caption = "Membranes of the readout, for one sample" + (f" of class {label}." if name else ".")
    many = len({*newest["threshold"].tolist()}) if "threshold" in newest else 0
    if name and many > 1:
        of_class = "that of its class is" if len(chosen) == 1 else "those of its class are"
        caption += f" The outputs have {many} different thresholds; only {of_class} drawn."
    caption += _some_steps(newest)
    return Picture("output_membrane", network.output_membrane(drawn, chosen, name, time), caption, data)


def _trajectory(columns: Mapping[str, Snapshot], time: str) -> Picture | None:
    newest = [*columns.values()][-1]
    target = newest.get("target")
    if target is None:
        return None
    drawn = {title: snapshot["trajectory"] for title, snapshot in columns.items()}
    curves = {**drawn, "target": target}
    data = {
        f"{title}: sample {s + 1}": values[:, s] for title, values in curves.items() for s in range(values.shape[1])
    }
    caption = f"Membrane of the readout and its target.{_some_steps(newest)}"
    size = int(newest.get(f"size/{newest['layers'][-1]}", 1))
    caption += f" The first of {size} outputs." if size > 1 else ""
    return Picture("trajectory", network.trajectory(drawn, target, time), caption, _by_step(data))


def _predictions(snapshot: Snapshot) -> Picture | None:
    images = _as_images(snapshot["images"]) if "images" in snapshot else None
    if images is None or not len(images):
        return None
    count = len(images)
    predicted, label = snapshot["predicted"], snapshot["label"]
    correct = int((predicted == label).sum())
    caption = (
        f"Predictions for the first {count} samples of the probe batch, errors in orange; "
        f"{correct} of all {len(label)} are correct."
    )
    data = {"sample": range(len(label)), "predicted": predicted, "label": label}
    return Picture("predictions", network.predictions(images, predicted[:count], label[:count]), caption, data)


def _confusion(snapshot: Snapshot, test: Snapshot) -> Picture | None:
    if "confusion" in test:
        counts, what = test["confusion"], "the test split"
    elif "label" in snapshot:
        K = int(snapshot[f"size/{snapshot['layers'][-1]}"]) // int(snapshot.get("population", 1))
        counts, what = np.zeros((K, K), dtype=int), "the probe batch"
        np.add.at(counts, (snapshot["label"], snapshot["predicted"]), 1)
    else:
        return None
    data = {"true class": range(len(counts))} | {f"taken for {k}": counts[:, k] for k in range(len(counts))}
    labels, samples = int(counts.sum()), int(test["samples"]) if "confusion" in test else 0
    counted = f"all samples of {what} ({labels:,})"
    if samples and labels != samples:
        counted = f"all labels of {what} ({labels:,} of {samples:,} samples)"
    caption = f"Confusion matrix of {counted}."
    return Picture("confusion", network.confusion(counts), caption, data)


def _rates(test: Snapshot) -> Picture | None:
    spikes = with_prefix(test, "spikes/")
    if not spikes:
        return None
    # batches may differ in length; older versions recorded only equal lengths
    trials = int(test.get("sample_steps", int(test["samples"]) * int(test["num_steps"])))
    rates = {layer: count / trials for layer, count in spikes.items()}
    caption = f"Distribution of firing rates of neurons over all samples of the test split ({int(test['samples']):,})."
    return Picture("firing_rates", network.rate_distribution(rates, "step"), caption, rates)


def _as_images(values: Array) -> Array | None:
    """Return images of one channel as ``[S, H, W]``; None for other data."""
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    return values if values.ndim == 3 and min(values.shape[1:]) > 1 else None


def _gradients(columns: Mapping[str, Snapshot], time: str) -> Picture | None:
    drawn = {title: with_prefix(snapshot, "gradient/") for title, snapshot in columns.items()}
    if not any(drawn.values()):
        return None
    data = {f"{title}: {layer}": norm for title, layers in drawn.items() for layer, norm in layers.items()}
    caption = (
        "Norm of the gradient of the loss with respect to the input current I[t] of each layer in each step, over the "
        "probe batch and the layer's neurons."
    )
    return Picture("gradient_norms", network.gradient_norms(drawn, time), caption, _by_step(data))


def _parameters(columns: Mapping[str, Snapshot], title: str) -> dict[str, Array]:
    """Return the parameters that vary between neurons or over training, by ``layer name``."""
    return {
        f"{layer} {name}": versions[title]
        for (layer, name), versions in _versions(columns).items()
        if title in versions and len(np.unique(np.concatenate([*versions.values()]))) > 1
    }


def _moved(columns: Mapping[str, Snapshot], title: str) -> dict[str, Array]:
    """Return the parameters that changed during training, by ``layer name``."""
    return {
        f"{layer} {name}": versions[title]
        for (layer, name), versions in _versions(columns).items()
        if title in versions and any(not np.array_equal(versions[title], other) for other in versions.values())
    }


def _versions(columns: Mapping[str, Snapshot]) -> dict[tuple[str, str], dict[str, Array]]:
    """Return the values of each neuron parameter by (layer, name) and title."""
    versions: dict[tuple[str, str], dict[str, Array]] = {}
    for title, snapshot in columns.items():
        for key, values in with_prefix(snapshot, "parameter/").items():
            layer, _, name = key.partition("/")
            versions.setdefault((layer, name), {})[title] = values
    return versions


def _distributions(drawn: Mapping[str, Mapping[str, Array]]) -> Picture | None:
    if not any(drawn.values()):
        return None
    caption = "Histograms of neuron parameters; a line if all neurons of a layer share one value."
    data = {f"{title}: {name}": values for title, column in drawn.items() for name, values in column.items()}
    return Picture("parameters", network.distributions(drawn), caption, data)


def _by_step(curves: Mapping[str, Array]) -> dict[str, Sequence[int] | Array]:
    return {"step": range(max(map(len, curves.values()))), **curves}
