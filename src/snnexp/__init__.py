"""snnexp: an experiment runner for spiking neural networks.

The data flow, and the module of each step::

    data -> encoder -> [ synapse -> neuron ] x L -> readout trace -> loss / decoder -> metrics
    data/   encoders   network      neurons/                         losses            metrics

``training`` assembles and trains it with Lightning from a config that ``config`` composes from ``conf/``; ``record``
writes and reads run directories; ``cli`` is the command line, ``experiment`` the Python API. Sequences are time-first:
``[T, B, *N]``.
"""

__version__ = "0.2.0"
