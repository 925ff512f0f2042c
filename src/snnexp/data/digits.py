"""Digits: 1,797 handwritten digits, 8 x 8 pixels with 17 levels.

The test set of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998; UCI repository,
https://doi.org/10.24432/C50P49, CC BY 4.0), as in scikit-learn 1.9. The file contains ``inputs`` ``[1797, 8, 8]``,
from 0 to 16, and ``labels`` ``[1797]``.
"""

from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.module import DataModule
from snnexp.data.prepare import prepared
from snnexp.data.sources import ArrayDataset, Source
from snnexp.spec.checked import checked
from snnexp.spec.parts import part

FILE = Path(__file__).with_name("digits.npz")
LEVELS = 16


@part(
    target="labels",
    sequences=False,
    inputs=(1, 8, 8),
    outputs=10,
    validation=("val_fraction",),
    stackable=True,
)
@checked
def digits_data(**options: Any) -> DataModule:
    """Make the data module of the digits, with pixels from 0 to 1.

    Args:
        options: see :func:`~snnexp.data.prepare.prepared`.
    """
    with np.load(FILE) as file:
        images, labels = file["inputs"], file["labels"].astype(np.int64)
    pixels = images[:, None].astype(np.float32) / LEVELS
    classes = [str(digit) for digit in range(10)]
    sources = {"train": Source("digits", ArrayDataset(pixels, labels, classes), key="digits")}
    return prepared(sources, target="labels", sequences=False, outputs=len(classes), **options)
