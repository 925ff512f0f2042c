"""Losses: pure functions of a readout trace and a target, and the loss classes used in configs.

Shapes: spikes and membrane ``[T, B, K]``, labels ``[B]`` (int64), trace targets ``[T, B, *N]``. Each returns a scalar.
A loss object stores the parameters of its function and reads statistics of a :class:`~snnexp.neurons.Trace`.
"""

from snnexp.losses.cross_entropy import (
    BCE,
    CECount,
    CEEachStep,
    CELastMembrane,
    CEMeanMembrane,
    CEMembrane,
    CERate,
    CESumMembrane,
    CrossEntropy,
    NLLMaxVoltage,
    ce_membrane,
    nll_max_voltage,
)
from snnexp.losses.loss import Loss
from snnexp.losses.mse import (
    MSECount,
    MSELast,
    MSEMembrane,
    MSETemporal,
    mse_count,
    mse_membrane,
)

__all__ = [
    "BCE",
    "CECount",
    "CEEachStep",
    "CELastMembrane",
    "CEMeanMembrane",
    "CEMembrane",
    "CERate",
    "CESumMembrane",
    "CrossEntropy",
    "Loss",
    "MSECount",
    "MSELast",
    "MSEMembrane",
    "MSETemporal",
    "NLLMaxVoltage",
    "ce_membrane",
    "mse_count",
    "mse_membrane",
    "nll_max_voltage",
]
