"""Principal components and codebooks of patches, fitted to a stream of them.

Everything is computed on the CPU, in one pass over the stream, and is a function of the patches in
their order and of the seed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from mae.errors import DataError, ParamsError
from mae.hashing import random_bits, uniform
from mae.model.targets import check_components, nearest_codes
from mae.params import TargetParams

_SAMPLE = 32_768  # patches that k-means works on: 64 for each of the usual 512 codes
_ROUNDS = 25  # of k-means, at most: the last ones move little


def fit_target(
    target: TargetParams, patches: Iterable[Tensor], seed: int
) -> dict[str, Tensor] | None:
    """Return the buffers of a target fitted to batches of normalised patches (..., P).

    None for the kinds that need no fitting, which leave `patches` unread.
    """
    if target.kind == "pca":
        return fit_pca(patches, target.components)
    if target.kind == "tokens":
        return fit_codebook(patches, target.codes, seed)
    return None


def fit_pca(patches: Iterable[Tensor], components: int) -> dict[str, Tensor]:
    """Return {mean (P,), basis (P, components), scale ()}, float32, of batches (..., P).

    The columns of the basis are the first principal components, largest variance first, each with
    its largest entry positive; scale is the root of their mean variance. Exact: the covariance is
    summed in float64 about the mean of the first batch. Raises DataError for fewer than two
    patches or patches all alike, ParamsError for more components than values.
    """
    batches = _rows(patches)
    first = next(batches, None)
    if first is None:
        raise DataError("there are no patches to fit principal components to")
    check_components(components, first.shape[1])
    shift = first.double().mean(dim=0)
    count, total = 0, torch.zeros_like(shift)
    products = shift.new_zeros(len(shift), len(shift))
    for batch in chain([first], batches):
        rows = batch.double() - shift
        count += len(rows)
        total += rows.sum(dim=0)
        products += rows.mT @ rows
    if count < 2:
        raise DataError("one patch is too few to fit principal components to")
    offset = total / count
    covariance = (products - count * torch.outer(offset, offset)) / (count - 1)
    variances, vectors = torch.linalg.eigh(covariance)
    variances, vectors = variances.flip(0)[:components], vectors.flip(1)[:, :components]
    scale = variances.clamp(min=0).mean().sqrt()
    if scale < 1e-6:
        raise DataError("the patches are all alike: there are no principal components to predict")
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    basis = vectors * largest.sign()
    return {
        "mean": (shift + offset).float(),
        "basis": basis.float().contiguous(),
        "scale": scale.float(),
    }


def fit_codebook(patches: Iterable[Tensor], codes: int, seed: int) -> dict[str, Tensor]:
    """Return {codebook (codes, P)}, float32: the k-means centres of batches (..., P).

    Works on at most 32768 patches drawn from the whole stream by hash, however it is cut into
    batches. Raises ParamsError when there are fewer distinct patches than codes.
    """
    sample = draw_sample(patches, _SAMPLE, seed)
    centres = _first_centres(sample, codes, seed)
    return {"codebook": k_means(sample, centres)}


def draw_sample(patches: Iterable[Tensor], limit: int, seed: int) -> Tensor:
    """Return at most `limit` patches of the stream in its order, float32 (n, P): the lowest hashes.

    Raises DataError for an empty stream.
    """
    rows: list[Tensor] = []
    keys: list[Tensor] = []
    seen, held = 0, 0
    highest = torch.iinfo(torch.int64).max
    for batch in _rows(patches):
        new = random_bits(seed, "codebook sample", 0, torch.arange(seen, seen + len(batch)), 1)
        seen += len(batch)
        low = new[:, 0] <= highest
        rows.append(batch[low])
        keys.append(new[low, 0])
        held += len(rows[-1])
        if held > 2 * limit:  # not at every batch: each time copies all
            rows, keys = _lowest(rows, keys, limit)
            held, highest = limit, int(keys[0].max())
    if not rows:
        raise DataError("there are no patches to fit a codebook to")
    return _lowest(rows, keys, limit)[0][0]


def _lowest(
    rows: list[Tensor], keys: list[Tensor], limit: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Join the parts and keep the `limit` rows of the lowest keys, in their order."""
    all_rows, all_keys = torch.cat(rows), torch.cat(keys)
    lowest = torch.argsort(all_keys, stable=True)[:limit].sort().values
    return [all_rows[lowest]], [all_keys[lowest]]


def k_means(patches: Tensor, centres: Tensor) -> Tensor:
    """Move `centres` (codes, P) to a local optimum for patches (n, P): Lloyd's algorithm.

    A centre that has lost all its patches takes the place of the patch farthest from its own.
    """
    patches, centres = patches.float(), centres.float()
    exact = patches.double()
    nearest = None
    for _ in range(_ROUNDS):
        assigned = _nearest(patches, centres)
        if nearest is not None and torch.equal(assigned, nearest):
            break
        nearest = assigned
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros(centres.shape, dtype=torch.float64)
        sums.index_add_(0, nearest, exact)
        moved = (sums / counts.clamp(min=1)[:, None]).float()
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            distances = (patches - centres[nearest]).square().sum(dim=1)
            farthest = torch.argsort(distances, descending=True, stable=True)
            moved[empty] = patches[farthest[: len(empty)]]
        centres = moved
    return centres


def _first_centres(patches: Tensor, codes: int, seed: int) -> Tensor:
    """Pick patches far apart, by hashed draws (k-means++, Arthur and Vassilvitskii 2007)."""
    draws = uniform(seed, "codebook start", 0, torch.arange(codes), 1)[:, 0]
    chosen = [int(draws[0] * len(patches))]
    distances = _squared_distances(patches, chosen[0])
    while len(chosen) < codes:
        cumulative = distances.double().cumsum(dim=0)
        if cumulative[-1] <= 0:
            raise ParamsError(
                f"target.codes {codes} exceeds the {len(chosen)} distinct patches that the "
                "codebook is fitted to: choose fewer codes, or add data"
            )
        wanted = draws[len(chosen)] * cumulative[-1]
        pick = min(int(torch.searchsorted(cumulative, wanted, right=True)), len(patches) - 1)
        chosen.append(pick)
        distances = torch.minimum(distances, _squared_distances(patches, pick))
    return patches[chosen]


def _squared_distances(patches: Tensor, index: int) -> Tensor:
    """Squared distances of all to one of them, (n,): exactly 0 for its copies."""
    one = patches[index : index + 1]
    return torch.cdist(patches, one, compute_mode="donot_use_mm_for_euclid_dist")[:, 0].square()


def _nearest(patches: Tensor, centres: Tensor) -> Tensor:
    """Nearest centres, some patches at a time: their distances would not all fit in memory."""
    return torch.cat([nearest_codes(part, centres) for part in patches.split(8192)])


@torch.no_grad()
def _rows(patches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Batches (..., P) as float32 rows (n, P) on the CPU. Raises DataError for NaN or infinity."""
    for batch in patches:
        rows = batch.detach().reshape(-1, batch.shape[-1]).float().cpu()
        if not torch.isfinite(rows).all():
            raise DataError("the patches to fit a target to hold numbers that are not finite")
        if len(rows):
            yield rows
