"""Measures: how well a readout meets its targets, and what layers do."""

from snnexp.metrics.classes import Accuracy, MacroF1, Undecided, accuracy
from snnexp.metrics.layers import dead, firing_rate, saturated, synaptic_operations
from snnexp.metrics.measure import MEAN, Measure, State, Sum, Totals, counted
from snnexp.metrics.values import L1, RelativeError, l1, relative_error

__all__ = [
    "L1",
    "MEAN",
    "Accuracy",
    "MacroF1",
    "Measure",
    "RelativeError",
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
