"""Multinomial logistic regression: scikit-learn's answer, on any device and in flat memory.

Minimises the mean cross-entropy + |W|^2 / (2 C n) over the weights W and a bias on standardised
features, in float64, by scipy's L-BFGS with all images at every step. It steps along the features'
principal axes, each scaled by its curvature, which makes the problem rounder: features of real
images, which lie along few axes, need several times fewer steps to the same minimum.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.errors import DataError
from mae.evaluation.minival import best_along
from mae.evaluation.scores import measure_scores

LOG = logging.getLogger(__name__)

_STEPS = 2000
_GRADIENT = 1e-6  # largest entry at which the minimum counts as found
_ROWS = 65536  # standardised and converted to float64 at a time
_SMALL = 1 << 23  # numbers in features that one core multiplies sooner than several agree


@dataclass(frozen=True)
class LinearModel:
    """float64: weight (K, D) and bias (K,) of features standardised by mean and scale (D,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """features (N, D) -> float32 (N, K), on the device of the features."""
        weight = (self.weight / self.scale).to(features.device)
        bias = self.bias.to(features.device) - weight @ self.mean.to(features.device)
        parts = [part.double() @ weight.mT + bias for part in features.split(_ROWS)]
        return torch.cat(parts).float()


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    c: float,
    device: torch.device | str = "cpu",
) -> LinearModel:
    """Learn features float32 (n, D) -> labels int64 (n,) in 0 .. classes - 1.

    c: inverse of the regularisation, as scikit-learn's C. features may be mapped from disk: where
    they are many they are read in stretches. The model is on the CPU. Raises DataError for labels
    of a single class.
    """
    if len(labels.unique()) < 2:
        raise DataError("the images to learn from are all of one class: nothing tells them apart")
    with _few_threads(alone=features.numel() <= _SMALL):
        return _fit(_Data(features, labels, torch.device(device)), classes, c)


@contextmanager
def _few_threads(alone: bool) -> Iterator[None]:
    """Keep scipy's steps, and with `alone` torch's products too, to one thread: sharing work this
    small between cores takes many times longer than doing it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if alone else threads)
    try:
        with _thread_pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@cache
def _thread_pools() -> Any:
    import scipy.optimize  # noqa: F401 (its BLAS must be loaded to be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _fit(data: "_Data", classes: int, c: float) -> LinearModel:
    from scipy.optimize import minimize

    penalty = 1 / (c * data.count)
    axes = data.axes(penalty)
    dim = axes.shape[1]

    def parts(numbers: NDArray) -> tuple[Tensor, Tensor]:
        whole = torch.from_numpy(numbers).to(data.device)
        return whole[: dim * classes].view(classes, dim) @ axes.mT, whole[dim * classes :]

    def loss_and_slope(numbers: NDArray) -> tuple[float, NDArray]:
        weight, bias = parts(numbers)
        loss, slope, bias_slope = data.loss_and_slopes(weight, bias)
        loss = loss + 0.5 * penalty * weight.square().sum()
        slope = torch.cat([((slope + penalty * weight) @ axes).flatten(), bias_slope])
        return float(loss), slope.cpu().numpy()

    options = {"maxiter": _STEPS, "maxls": 50, "gtol": _GRADIENT, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros((dim + 1) * classes)
    found = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", options=options)
    if found.nit >= _STEPS:
        LOG.warning("logistic regression with C = %g is not quite at its minimum", c)
    weight, bias = parts(found.x)
    return LinearModel(weight.cpu(), bias.cpu(), data.mean.cpu(), data.scale.cpu())


def choose_logistic(
    fit: tuple[Tensor, Tensor],
    minival: tuple[Tensor, Tensor],
    classes: int,
    cs: Sequence[float],
    device: torch.device | str = "cpu",
) -> tuple[float, dict[float, float]]:
    """Return the c that does best on minival, the smallest of equals, and the top-1 accuracy of
    those tried. Both sets are (features, labels)."""

    def accuracy_of(c: float) -> float:
        logits = fit_logistic(*fit, classes, c, device).logits(minival[0])
        return measure_scores(logits, minival[1]).top1

    return best_along(cs, accuracy_of)


class _Data:
    """Images to learn from: features to be standardised, and labels, on the device."""

    def __init__(self, features: Tensor, labels: Tensor, device: torch.device) -> None:
        self.count, self.device = len(labels), device
        self._features, self._labels = features, labels.to(device)
        self.mean, self.scale = self._statistics()
        # What is small is standardised once, and not at every step.
        self._whole = self._standardised(slice(None)) if len(features) <= _ROWS else None

    def _statistics(self) -> tuple[Tensor, Tensor]:
        count, dim = self._features.shape
        mean = torch.zeros(dim, dtype=torch.float64, device=self.device)
        square = torch.zeros_like(mean)
        for rows in self._stretches():
            mean += self._moved(rows).sum(dim=0) / count
        for rows in self._stretches():
            square += (self._moved(rows) - mean).square().sum(dim=0) / count
        # A feature that never varies carries nothing; what is left of it is rounding.
        constant = square.sqrt() <= 1e-10 * mean.abs()
        return mean, torch.where(constant, 1.0, square.sqrt())

    def axes(self, penalty: float) -> Tensor:
        """Return the axes (D, r) to step along as columns, r = min(n, D), scaled by curvature.

        With fewer images than features the minimum lies in what the images span.
        """
        if self.count < len(self.mean):
            _, values, axes = torch.linalg.svd(self._rows(slice(None)), full_matrices=False)
            axes, squares = axes.mT, values.square() / self.count
        else:
            gram = sum(features.mT @ features for features in map(self._rows, self._stretches()))
            squares, axes = torch.linalg.eigh(gram / self.count)
        # Part of the way to a round problem, in exponents: all of it, the root, is right at the
        # start, where every class is as likely, and wrong where classes turn out far apart.
        return axes / (squares.clamp(min=0) + penalty) ** 0.35

    def _stretches(self) -> Iterator[slice]:
        for start in range(0, len(self._labels), _ROWS):
            yield slice(start, start + _ROWS)

    def _moved(self, rows: slice) -> Tensor:
        return self._features[rows].to(self.device, torch.float64)

    def _rows(self, rows: slice) -> Tensor:
        return self._standardised(rows) if self._whole is None else self._whole

    def _standardised(self, rows: slice) -> Tensor:
        return (self._moved(rows) - self.mean) / self.scale

    def loss_and_slopes(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean cross-entropy under weight (K, D), bias (K,), and its derivatives.

        Classes come first in all products: matrices of few, long rows are quicker here.
        """
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        slope, bias_slope = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in self._stretches():
            features, labels = self._rows(rows), self._labels[None, rows]
            log_shares = torch.addmm(bias[:, None], weight, features.mT).log_softmax(dim=0)
            loss -= log_shares.gather(0, labels).sum()
            error = log_shares.exp_()
            error.scatter_add_(0, labels, torch.full_like(error[:1], -1.0))
            slope.addmm_(error, features)
            bias_slope += error.sum(dim=1)
        return loss / self.count, slope / self.count, bias_slope / self.count
