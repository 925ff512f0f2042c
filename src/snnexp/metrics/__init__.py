"""Metrics of the readout and of layer activity."""

from snnexp.metrics.classes import (
    Accuracy,
    BalancedAccuracy,
    Latency,
    MacroF1,
    MacroPrecision,
    MacroRecall,
    RocAuc,
    Undecided,
    accuracy,
)
from snnexp.metrics.layers import dead, firing_rate, saturated, synaptic_operations
from snnexp.metrics.measure import MEAN, Measure, State, Sum, Totals, counted
from snnexp.metrics.values import L1, R2, RMSE, RelativeError, l1, relative_error

__all__ = [
    "L1",
    "MEAN",
    "R2",
    "RMSE",
    "Accuracy",
    "BalancedAccuracy",
    "Latency",
    "MacroF1",
    "MacroPrecision",
    "MacroRecall",
    "Measure",
    "RelativeError",
    "RocAuc",
    "State",
    "Sum",
    "Totals",
    "Undecided",
    "accuracy",
    "counted",
    "dead",
    "firing_rate",
    "l1",
    "relative_error",
    "saturated",
    "synaptic_operations",
]
