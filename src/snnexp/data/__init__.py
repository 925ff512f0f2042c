"""Data modules: samples in memory, indexed by whole batches, or read one by one."""

from snnexp.data.arrays import arrays_data
from snnexp.data.dataset import from_dataset
from snnexp.data.description import Description
from snnexp.data.digits import digits_data
from snnexp.data.folders import folder_data
from snnexp.data.mnist import MNIST, mnist_data
from snnexp.data.module import DataModule
from snnexp.data.regression import RegressionDataset, regression_data
from snnexp.data.tables import csv_data
from snnexp.data.vision import torchvision_data

__all__ = [
    "MNIST",
    "DataModule",
    "Description",
    "RegressionDataset",
    "arrays_data",
    "csv_data",
    "digits_data",
    "folder_data",
    "from_dataset",
    "mnist_data",
    "regression_data",
    "torchvision_data",
]
