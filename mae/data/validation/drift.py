"""How far a version of the data has moved from the one that was accepted last."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae.data.validation.profile import FORMAT
from mae.errors import DataError
from mae.files import read_json, write_json
from mae.params.validation import DriftParams

# A share of nothing has no logarithm; the customary floor.
_LEAST_SHARE = 1e-4
_GROUPS = 10
_LARGEST_NAMES = 20
# Groups of fewer images than this differ by chance alone.
_IMAGES_PER_GROUP = 50

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """fingerprint: of the accepted version. measures: column -> how far it has moved. new,
    vanished: classes without an image in the accepted version, and in this one."""

    fingerprint: str
    measures: dict[str, float]
    new: tuple[str, ...]
    vanished: tuple[str, ...]


def psi(expected: Counts, observed: Counts) -> float:
    """Return the population stability index of two histograms of the same bins."""
    e = np.maximum(expected / expected.sum(), _LEAST_SHARE)
    o = np.maximum(observed / observed.sum(), _LEAST_SHARE)
    return float(((o - e) * np.log(o / e)).sum())


def kolmogorov_smirnov(expected: Counts, observed: Counts) -> float:
    """Return the largest difference between the cumulative shares of two histograms."""
    e, o = expected.cumsum() / expected.sum(), observed.cumsum() / observed.sum()
    return float(np.abs(e - o).max())


def total_variation(expected: Counts, observed: Counts) -> float:
    """Return the largest difference between the shares of any set of bins, whatever their order."""
    return float(np.abs(expected / expected.sum() - observed / observed.sum()).sum() / 2)


def read_reference(folder: Path, dataset: str) -> dict[str, Any] | None:
    """Return the accepted profile of a dataset, None where none was accepted.

    Raises DataError for a file that is no profile of this dataset.
    """
    path = folder / f"{dataset}.json"
    content = _read_profile(path) if path.exists() else None
    if content is not None and content["dataset"] != dataset:
        raise DataError(f"{path} is a profile of {content['dataset']}: run `mae data accept` again")
    return content


def accept(validation: Path, references: Path) -> list[Path]:
    """Make the profiles that validation wrote those that later data are compared with.

    Returns the files written; a skipped dataset leaves its reference as it is. Raises DataError
    where nothing was validated.
    """
    found = sorted(validation.glob("profile-*.json"))
    profiles = [content for path in found if (content := _read_profile(path)) is not None]
    if not profiles:
        raise DataError(f"{validation} holds no profile: run `dvc repro validate` first")
    written = []
    for content in profiles:
        path = references / f"{content['dataset']}.json"
        write_json(path, content)
        written.append(path)
    return written


def _read_profile(path: Path) -> dict[str, Any] | None:
    """Return a profile, None in the place of a dataset that was skipped."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}): restore it, or validate and accept the data again"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(
            f"{path} is no profile of format {FORMAT}: validate the data and run `mae data accept`"
        )
    return None if content["skipped"] else content


def compare(reference: dict[str, Any], profile: dict[str, Any], params: DriftParams) -> Drift:
    """Compare two profiles (`Profile.to_dict`). Columns that either has no values of are left out.

    Numbers: PSI in tenths of the reference with the values below and above it apart, KS in the
    bins of the profile. Names: the largest apart and the others together.
    """
    measures: dict[str, float] = {}
    for name in params.columns:
        if name in profile["columns"]:
            expected, observed = _aligned(
                dict(reference["columns"][name]["bins"]), dict(profile["columns"][name]["bins"])
            )
            measure = _move_of_numbers
        else:
            expected, observed = _aligned(reference["names"][name], profile["names"][name])
            measure = _move_of_names
        if expected.sum() and observed.sum():
            measures[name] = measure(expected, observed, params.measure)
    classes, before = profile["names"]["label"], reference["names"]["label"]
    checked = bool(params.columns)
    return Drift(
        fingerprint=reference["fingerprint"],
        measures=measures,
        new=tuple(_only_in(classes, before)) if checked else (),
        vanished=tuple(_only_in(before, classes)) if checked else (),
    )


def _only_in(these: dict[str, int], others: dict[str, int]) -> list[str]:
    return sorted(name for name, count in these.items() if count and not others.get(name))


def _aligned(reference: dict[Any, int], profile: dict[Any, int]) -> tuple[Counts, Counts]:
    """Return the counts of both in the sorted bins of either."""
    bins = sorted({*reference, *profile})
    expected = [reference.get(number, 0) for number in bins]
    observed = [profile.get(number, 0) for number in bins]
    return np.array(expected, np.float64), np.array(observed, np.float64)


def _move_of_numbers(expected: Counts, observed: Counts, measure: str) -> float:
    if measure == "ks":
        return kolmogorov_smirnov(expected, observed)
    groups = _tenths(expected, _groups(expected, observed, _GROUPS))
    return psi(_summed(expected, groups), _summed(observed, groups))


def _move_of_names(expected: Counts, observed: Counts, measure: str) -> float:
    if measure == "ks":
        return total_variation(expected, observed)
    apart = _groups(expected, observed, _LARGEST_NAMES) - 1
    groups = np.full(len(expected), apart)
    groups[np.argsort(-expected, kind="stable")[:apart]] = np.arange(min(apart, len(expected)))
    return psi(_summed(expected, groups), _summed(observed, groups))


def _groups(expected: Counts, observed: Counts, most: int) -> int:
    images = min(expected.sum(), observed.sum())
    return max(2, min(most, int(images) // _IMAGES_PER_GROUP))


def _tenths(expected: Counts, count: int) -> NDArray[np.int64]:
    """Return the group of each bin: 0 below all of `expected`, about equal shares, then above."""
    present = np.flatnonzero(expected)
    before = expected.cumsum() - expected
    groups = 1 + np.minimum(count - 1, (before * count / expected.sum()).astype(np.int64))
    groups[: present[0]] = 0
    groups[present[-1] + 1 :] = count + 1
    return groups


def _summed(counts: Counts, groups: NDArray[np.int64]) -> Counts:
    return np.bincount(groups, counts).astype(np.float64)


def names_in_words(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
