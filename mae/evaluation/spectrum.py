"""What the features of unlabelled images say of an encoder: how many directions they fill.

All take features (n, D), one row for each image, and compute in float64 from D x D products, so
that the number of images costs time alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Variance this small beside the mean's square is rounding: the features are the same for all.
_CONSTANT = 1e-10
_BLOCK = 4096

# Ranks of the eigenvalues that the power law is fitted to, as in alpha-ReQ's published code.
ALPHA_RANKS = 4, 100
_FEWEST_RANKS = 8


class Moments(NamedTuple):
    """images: n. mean float64 (D,). products float64 (D, D): of the features as they are, X'X."""

    images: int
    mean: Tensor
    products: Tensor

    @property
    def covariance(self) -> Tensor:
        """Return the covariance (D, D), normalised by n."""
        return self.products / self.images - torch.outer(self.mean, self.mean)


def moments_of(features: Tensor) -> Moments:
    """Return the moments of features (n, D), read some rows at a time."""
    width = features.shape[1]
    total = torch.zeros(width, dtype=torch.float64, device=features.device)
    products = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for rows in features.split(_BLOCK):
        rows = rows.double()
        total += rows.sum(dim=0)
        products += rows.mT @ rows
    return Moments(len(features), total / len(features), products)


def eigenvalues(moments: Moments) -> Tensor:
    """Return the eigenvalues of the covariance, float64 (D,), falling; all 0 where it is rounding.

    The covariance is that of the centred features.
    """
    variance = float(moments.covariance.diagonal().sum())
    if variance <= _CONSTANT * float(moments.mean.square().sum()):
        return torch.zeros_like(moments.mean)
    return torch.linalg.eigvalsh(moments.covariance).flip(0).clamp(min=0)


def rank_me(moments: Moments) -> float:
    """Return RankMe (arXiv 2210.02885): exp of the entropy of the singular values' shares.

    Of the features as they are, not centred: between 1 and D.
    """
    singular = torch.linalg.eigvalsh(moments.products).clamp(min=0).sqrt()
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def effective_rank(spectrum: Tensor) -> float:
    """Return exp of the entropy of the eigenvalues' shares (Roy and Vetterli, 2007).

    Of the covariance's eigenvalues (D,): how many directions the variance fills, 1 to D; 0 where
    there is no variance.
    """
    total = spectrum.sum()
    if total <= 0:
        return 0.0
    return float(torch.exp(torch.special.entr(spectrum / total).sum()))


def alpha(spectrum: Tensor) -> float | None:
    """Return the exponent a of eigenvalues that fall as rank^-a (arXiv 2202.05808).

    A weighted line through their logarithms at ranks 4 to 100, or to the last above rounding, each
    weighing 1 / rank. None where fewer than 8 are left to fit to.
    """
    above_rounding = int((spectrum > spectrum[0] * 1e-10).sum())
    first, last = ALPHA_RANKS[0], min(ALPHA_RANKS[1], above_rounding)
    if last - first + 1 < _FEWEST_RANKS:
        return None
    ranks = torch.arange(first, last + 1, dtype=torch.float64)
    x, y, weight = ranks.log(), spectrum[first - 1 : last].cpu().log(), 1 / ranks
    x = x - (weight * x).sum() / weight.sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())


def has_collapsed(effective: float, images: int, width: int, share: float) -> bool:
    """Whether features fill less than `share` of the directions that they could.

    effective: their effective rank. Of few images, no more directions than images are expected.
    """
    return effective == 0 or effective < share * min(width, images - 1)


def uniformity(features: Tensor) -> float:
    """Return log of the mean of exp(-2 |x - y|^2) over pairs of unit features (arXiv 2005.10242).

    0 where all point one way, about -4 where they are spread evenly over many dimensions.
    """
    total = 0.0
    rows = torch.nn.functional.normalize(features.float(), dim=1)
    for some in rows.split(_BLOCK):
        total += float(torch.exp(4 * (some @ rows.mT) - 4).double().sum())
    count = len(rows)
    pairs = count * (count - 1)
    return float(torch.tensor((total - count) / pairs).log()) if pairs and total > count else 0.0


def linear_cka(first: Tensor, second: Tensor) -> float | None:
    """Return how alike two sets of features of the same images are: 1 up to rotation and scale.

    Linear CKA (arXiv 1905.00414) of features (n, D) and (n, E), with the unbiased estimate of HSIC
    (arXiv 2010.15327), so that unrelated features have about 0 however few the images are. None
    for fewer than four images, and where one set is the same for all.
    """
    if len(first) < 4:
        return None
    x, y = (_centred(features) for features in (first, second))
    if x is None or y is None:
        return None
    own = _hsic(x, x) * _hsic(y, y)
    return float(_hsic(x, y) / own.sqrt()) if own > 0 else None


def _centred(features: Tensor) -> Tensor | None:
    """Return features less their mean, in float64, or None where nothing is left."""
    features = features.double()
    centred = features - features.mean(dim=0)
    constant = centred.square().sum() <= _CONSTANT * features.square().sum()
    return None if constant else centred


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return n (n - 3) times the unbiased estimate of HSIC with linear kernels (Song et al. 2012).

    With K and L the kernels without their diagonals: tr(KL) + 1'K1 1'L1 / (n - 1)(n - 2)
    - 2 1'KL1 / (n - 2), from D x E products alone.
    """
    n = len(x)
    own_x, own_y = x.square().sum(dim=1), y.square().sum(dim=1)
    trace = (x.mT @ y).square().sum() - (own_x * own_y).sum()
    rows_x, rows_y = x @ x.sum(dim=0) - own_x, y @ y.sum(dim=0) - own_y
    sums = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return trace + sums - 2 * (rows_x * rows_y).sum() / (n - 2)
