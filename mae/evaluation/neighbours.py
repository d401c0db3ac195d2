"""The images most alike by the cosine of their features, and how they vote on a class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Similarities held at a time: 512 x 16384 float32 are 32 MB, whatever the number of images.
_QUERIES, _GALLERY = 512, 16384


def nearest(
    gallery: Tensor,
    queries: Tensor,
    k: int,
    device: torch.device,
    *,
    without: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for some queries (q, D) at a time and in order, their k nearest in the gallery.

    gallery (n, D), queries (m, D): of any length but zero's direction, since only the angle
    counts; they may be mapped from disk. Yields cosines (q, k), falling, and rows of the gallery
    int64 (q, k), on the device. k: at most n. without: rows of the gallery that count as absent;
    k is at most the number of the others.
    """
    absent = torch.zeros(len(gallery), dtype=torch.bool)
    if without is not None:
        absent[without] = True
    for some in queries.split(_QUERIES):
        some = _unit(some, device)
        best = torch.empty(len(some), 0, device=device)
        rows = torch.empty(len(some), 0, dtype=torch.int64, device=device)
        for start in range(0, len(gallery), _GALLERY):
            block = _unit(gallery[start : start + _GALLERY], device)
            similar = some @ block.mT
            similar[:, absent[start : start + _GALLERY].to(device)] = -torch.inf
            found = torch.cat([best, similar], dim=1)
            here = torch.arange(start, start + len(block), device=device)
            owners = torch.cat([rows, here.expand(len(some), -1)], dim=1)
            best, columns = found.topk(min(k, found.shape[1]), dim=1)
            rows = owners.gather(1, columns)
        yield best, rows


def _unit(vectors: Tensor, device: torch.device) -> Tensor:
    return nn.functional.normalize(vectors.to(device), dim=1)


@dataclass(frozen=True)
class Bank:
    """Vectors float32 (n, D) of images whose labels, int64 (n,) in 0 .. classes - 1, are known.

    without: rows that have no vote, as if they were not there.
    """

    vectors: Tensor
    labels: Tensor
    classes: int
    without: Tensor | None = None


def knn_votes(
    bank: Bank, queries: Tensor, ks: Sequence[int], temperature: float, device: torch.device
) -> dict[int, Tensor]:
    """Return, for each k, the share of the votes that each class gets: float32 (m, K), K classes.

    Each of the k nearest in the bank votes for its class with weight exp(cosine / temperature),
    as in arXiv 1805.01978, section 3.4.
    """
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    labels = bank.labels.to(device)
    found = nearest(bank.vectors, queries, max(ks), device, without=bank.without)
    for similarities, rows in found:
        # Relative to the nearest, so that a small temperature cannot overflow.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        owners = labels[rows]
        for k in ks:
            votes = torch.zeros(len(weights), bank.classes, device=device)
            votes.scatter_add_(1, owners[:, :k], weights[:, :k])
            parts[k].append((votes / votes.sum(dim=1, keepdim=True)).cpu())
    return {k: torch.cat(some) for k, some in parts.items()}


def knn_predict(
    bank: Bank, queries: Tensor, ks: Sequence[int], temperature: float, device: torch.device
) -> dict[int, Tensor]:
    """Return the predicted labels, int64 (m,), for each k: those with the most votes."""
    votes = knn_votes(bank, queries, ks, temperature, device)
    return {k: shares.argmax(dim=1) for k, shares in votes.items()}
