"""snnexp: an experiment runner for spiking neural networks.

The way data flows, and where each step lives::

    data -> encoder -> [ synapse -> neuron ] x L -> readout trace -> loss / decoder -> metrics
    data/   encoders   network      neurons/                         losses            metrics

``task`` drives it as a LightningModule, ``experiment`` assembles it from what ``config`` composed out of ``conf/``,
``runs`` writes and reads the record, ``cli`` is the command line. Sequences are time first: ``[T, B, *N]``.
"""

__version__ = "0.2.0"
