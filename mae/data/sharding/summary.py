"""From a manifest to what dataset.json says of the whole."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mae.data import reasons
from mae.data.dataset import FORMAT, DatasetInfo
from mae.data.records import Source
from mae.data.sharding.splits import SPLITS
from mae.data.sharding.statistics import PixelSums
from mae.errors import DataError
from mae.params import DataParams
from mae.pixels import PixelStatistics

_HALF = (1 << 32) - 1


def summarise(
    dataset: str, source: Source, data: DataParams, recipe: str, code: str, manifest: pa.Table
) -> DatasetInfo:
    """Raises DataError when no image is left to learn from."""
    accepted = manifest.filter(manifest["accepted"])
    splits = Counter(accepted["split"].to_pylist())
    why = Counter(manifest.filter(pc.invert(manifest["accepted"]))["reason"].to_pylist())
    if not splits["train"]:
        raise DataError(_nothing_to_learn_from(dataset, source, splits, why))
    learned = accepted.filter(pc.equal(accepted["split"], "train"))
    instances = _instances(accepted)
    met = {name for counts in instances.values() for name in counts}
    labels = set(accepted["label"].drop_null().to_pylist())
    classes = tuple(sorted(labels)) if source.classes is None else source.classes
    categories = tuple(sorted(met)) if source.categories is None else source.categories
    excluded = set(data.exclude_labels)
    aside = sum(why[reason] for reason in reasons.SET_ASIDE)
    return DatasetInfo(
        folder=Path(),
        dataset=dataset,
        layout=source.layout,
        classes=tuple(name for name in classes if name not in excluded),
        categories=categories,
        statistics=_pixels(_sums(learned, data.channels).statistics(data.bit_depth), data),
        fingerprint=_fingerprint(accepted, data, classes, categories),
        recipe=recipe,
        code=code,
        splits={split: splits[split] for split in SPLITS},
        instances=instances,
        seen=manifest.num_rows,
        accepted=accepted.num_rows,
        quarantined=why.total() - aside,
        set_aside=aside,
        limits=_limits(data),
    )


def skipped_info(dataset: str, data: DataParams, recipe: str, code: str) -> DatasetInfo:
    channels = data.channels
    return DatasetInfo(
        folder=Path(),
        dataset=dataset,
        layout="none",
        classes=(),
        categories=(),
        statistics=_pixels(
            PixelStatistics((0.0,) * channels, (1.0,) * channels, data.bit_depth), data
        ),
        fingerprint=hashlib.sha256(b"skipped").hexdigest(),
        recipe=recipe,
        code=code,
        splits=dict.fromkeys(SPLITS, 0),
        instances={},
        seen=0,
        accepted=0,
        quarantined=0,
        set_aside=0,
        limits=_limits(data),
        skipped=f"data.{dataset}.source is none: there are no {dataset} to work on",
    )


def _pixels(statistics: PixelStatistics, data: DataParams) -> PixelStatistics:
    return replace(statistics, bands=data.bands, depth_range=data.depth_range)


def _limits(data: DataParams) -> dict[str, int]:
    return {"min_side": data.min_side, "max_pixels": data.max_pixels}


def _nothing_to_learn_from(
    dataset: str, source: Source, splits: Counter[str], why: Counter[str]
) -> str:
    where = f"the source of {dataset} ({source.layout})"
    if not splits.total():
        reasons_met = ", ".join(f"{count} {name}" for name, count in why.most_common())
        return f"{where} has no image that can be used; left out: {reasons_met or 'none seen'}"
    return f"{where} has no image in train, only in {', '.join(sorted(+splits))}"


def _instances(accepted: pa.Table) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        names = pc.list_flatten(accepted.filter(pc.equal(accepted["split"], split))["categories"])
        if len(names):
            found = Counter(names.to_pylist())
            counts[split] = {name: found[name] for name in sorted(found)}
    return counts


def _sums(learned: pa.Table, channels: int) -> PixelSums:
    pixels = _exact_sum(learned["sum_pixels"].to_numpy()[:, None])[0]
    total, squares = (
        _exact_sum(pc.list_flatten(learned[name]).to_numpy().reshape(-1, channels))
        for name in ("sum_total", "sum_squares")
    )
    return PixelSums(pixels, tuple(total), tuple(squares))


def _exact_sum(values: np.ndarray) -> list[int]:
    """Sum the rows of int64 (N, C) without overflow: the halves of each word on their own."""
    high, low = (values >> 32).sum(axis=0), (values & _HALF).sum(axis=0)
    return [(int(top) << 32) + int(rest) for top, rest in zip(high, low, strict=True)]


def _fingerprint(
    accepted: pa.Table, data: DataParams, classes: tuple[str, ...], categories: tuple[str, ...]
) -> str:
    """Hash all that a stage after this one can see of the images, in the order of their names."""
    form = [data.channels, data.bit_depth, data.bands, data.depth_range, data.store.model_dump()]
    content = hashlib.sha256(
        json.dumps([FORMAT, form, classes, categories], sort_keys=True).encode()
    )
    for name in ("split", "proof"):
        content.update("\n".join(accepted[name].to_pylist()).encode())
    return content.hexdigest()
