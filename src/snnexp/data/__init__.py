"""Datasets held in memory and served as whole batches."""

from snnexp.data.mnist import MNIST, mnist_data
from snnexp.data.module import DataModule
from snnexp.data.regression import RegressionDataset, regression_data

__all__ = ["MNIST", "DataModule", "RegressionDataset", "mnist_data", "regression_data"]
