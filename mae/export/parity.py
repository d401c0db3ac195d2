"""The gate in front of every export: onnxruntime must say what torch says, on real images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mae.data.loading.evaluation import evenly_spread
from mae.errors import MaestroError
from mae.evaluation.logistic import LinearModel
from mae.export.agreement import decisions_kept, neighbours_kept
from mae.export.description import INPUT
from mae.export.held_out import HeldOutImages
from mae.export.onnx_export import PixelModel
from mae.params import Feature, OnnxPrecision, ParityLimits

LOG = logging.getLogger(__name__)

BATCHES = (1, 2, 7)
LARGEST_BATCH = 64
VECTORS = ("cls", "mean")
_TORCH_BATCH = 32

Answers = dict[str, list[NDArray]]
"""Output -> its value for each image, in order; maps may differ in shape."""


class ParityError(MaestroError):
    """An exported file does not say what torch says."""


@dataclass(frozen=True)
class Deviation:
    """The largest difference and smallest cosine of one output at one batch, and whose they are.

    form: of the images, as in HeldOutImages.
    """

    output: str
    batch: int
    max_abs: float
    max_abs_key: str
    min_cosine: float
    min_cosine_key: str
    form: str = ""


@dataclass(frozen=True)
class Parity:
    """What was found of one file on one provider. None where it does not apply."""

    deviations: list[Deviation]
    neighbours: float | None
    decisions: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the worst of each output."""
        return {output: _worst(self.deviations, output) for output in self.outputs}

    @property
    def outputs(self) -> list[str]:
        return list(dict.fromkeys(one.output for one in self.deviations))


def _worst(deviations: list[Deviation], output: str) -> dict[str, Any]:
    own = [one for one in deviations if one.output == output]
    furthest = max(own, key=lambda one: one.max_abs)
    most_turned = min(own, key=lambda one: one.min_cosine)
    return {
        "max_abs": furthest.max_abs,
        "max_abs_key": furthest.max_abs_key,
        "min_cosine": most_turned.min_cosine,
        "min_cosine_key": most_turned.min_cosine_key,
    }


@torch.no_grad()
def torch_answers(model: PixelModel, images: HeldOutImages) -> Answers:
    """Return what torch says of the images in float32, on the CPU."""
    model = model.cpu().eval()
    parts = [model(torch.from_numpy(batch)) for batch in images.batches(_TORCH_BATCH)]
    return {
        name: [row for part in parts for row in part[at].numpy()]
        for at, name in enumerate(model.outputs)
    }


def measure_parity(
    expected: Sequence[Answers],
    session: Any,
    forms: Sequence[HeldOutImages],
    feature: Feature,
    probe: LinearModel | None,
) -> Parity:
    """Compare every output with torch's: batches of 1, 2 and 7 of some images, then all, at most
    64 at a time.

    session: plain onnxruntime. expected: what torch says of each of the forms, the first of which
    decides on neighbours and decisions. probe: whose decisions count, on `feature`; a classifier's
    are its own.
    """
    deviations: list[Deviation] = []
    neighbours, decisions = [], []
    for place, (answers, images) in enumerate(zip(expected, forms, strict=True)):
        *small, largest = batches_of(images)
        some = evenly_spread(len(images), largest).tolist()
        few = images.take(some)
        few_answers = {name: [rows[row] for row in some] for name, rows in answers.items()}
        for size in small:
            deviations += _deviations(size, few_answers, _run(session, few, size), few)
        got = _run(session, images, largest)
        deviations += _deviations(largest, answers, got, images)
        if place == 0 and _all_finite(got):
            neighbours += _neighbours(answers, got)
            decisions += _decisions(answers, got, feature, probe)
    return Parity(deviations, min(neighbours, default=None), min(decisions, default=None))


def batches_of(images: HeldOutImages) -> list[int]:
    """Return the batch sizes that images are compared at."""
    largest = min(len(images), LARGEST_BATCH)
    return sorted({size for size in BATCHES if size < largest} | {largest})


def _run(session: Any, images: HeldOutImages, size: int) -> Answers:
    names = [value.name for value in session.get_outputs()]
    parts = [session.run(names, {INPUT: batch}) for batch in images.batches(size)]
    return {name: [row for part in parts for row in part[at]] for at, name in enumerate(names)}


def _all_finite(answers: Answers) -> bool:
    return all(np.isfinite(row).all() for rows in answers.values() for row in rows)


def _neighbours(answers: Answers, got: Answers) -> list[float]:
    return [
        neighbours_kept(np.stack(answers[name]), np.stack(got[name]))
        for name in VECTORS
        if name in answers
    ]


def _decisions(
    answers: Answers, got: Answers, feature: Feature, probe: LinearModel | None
) -> list[float]:
    if "logits" in answers:
        return [decisions_kept(np.stack(answers["logits"]), np.stack(got["logits"]))]
    if probe is None:
        return []
    true, found = (
        probe.logits(torch.from_numpy(np.stack(one[feature]))).numpy() for one in (answers, got)
    )
    return [decisions_kept(true, found)]


def _deviations(
    size: int, expected: Answers, got: Answers, images: HeldOutImages
) -> list[Deviation]:
    return [_deviation(name, size, expected[name], got[name], images) for name in expected]


def _deviation(
    name: str, size: int, expected: list[NDArray], got: list[NDArray], images: HeldOutImages
) -> Deviation:
    pairs = list(zip(expected, got, strict=True))
    difference = [_difference(true, found) for true, found in pairs]
    cosine = [_cosine(true, found) for true, found in pairs]
    furthest, most_turned = int(np.argmax(difference)), int(np.argmin(cosine))
    return Deviation(
        output=name,
        batch=size,
        max_abs=difference[furthest],
        max_abs_key=images.keys[furthest],
        min_cosine=cosine[most_turned],
        min_cosine_key=images.keys[most_turned],
        form=images.form,
    )


def _difference(true: NDArray, found: NDArray) -> float:
    """A NaN is further from the truth than any number."""
    difference = np.abs(true.astype(np.float64) - found)
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def _cosine(true: NDArray, found: NDArray) -> float:
    """Return the cosine of vectors (D,), or the smallest of those in maps (D, Hp, Wp)."""
    a, b = true.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
        cosine = (a * b).sum(axis=0) / np.maximum(norms, np.finfo(np.float64).tiny)
    cosine = np.where((a == b).all(axis=0), 1.0, cosine)  # two zeros agree
    return float(np.nan_to_num(cosine, nan=-1.0).min())


def enforce_parity(
    found: Parity, limits: ParityLimits, precision: OnnxPrecision, provider: str, what: str
) -> None:
    """Raise ParityError for the worst of what lies beyond the limits, if anything does.

    what: the model in words. Of a classifier probabilities count, and not its logits, which
    have no scale of their own.
    """
    where = f"export.parity.{precision}"
    judged = [one for one in found.deviations if one.output != "logits"]
    for one in sorted(judged, key=lambda one: -one.max_abs):
        too_far = limits.max_abs is not None and one.max_abs > limits.max_abs
        if too_far or one.min_cosine < limits.min_cosine or not np.isfinite(one.max_abs):
            turned = not too_far and np.isfinite(one.max_abs)
            key = one.min_cosine_key if turned else one.max_abs_key
            allowed = "none" if limits.max_abs is None else f"{limits.max_abs:g}"
            raise ParityError(
                f"the {what} in {precision} does not agree with torch: output '{one.output}' at "
                f"batch {one.batch}{one.form} on {provider} is off by {one.max_abs:.3g} (limit "
                f"{where}.max_abs {allowed}) with a cosine of {one.min_cosine:.6f} (limit "
                f"{where}.min_cosine {limits.min_cosine:g}), image {key}"
            )
    for name, share, least in (
        ("nearest neighbour", found.neighbours, limits.neighbours),
        ("class by a linear layer", found.decisions, limits.decisions),
    ):
        if share is not None and share < least:
            key = "neighbours" if name.startswith("nearest") else "decisions"
            raise ParityError(
                f"the {what} in {precision} does not agree with torch: on {provider} the {name} "
                f"of {share:.1%} of the images is the same (limit {where}.{key} {least:g})"
            )
    worst = max(one.max_abs for one in judged)
    LOG.info("%s in %s on %s: largest difference from torch %.2g", what, precision, provider, worst)


def parity_numbers(parities: Sequence[Parity]) -> dict[str, float]:
    """Return the worst of all providers, and of each output, as flat numbers."""
    outputs = parities[0].outputs
    worst = {
        name: [one for parity in parities for one in parity.deviations if one.output == name]
        for name in outputs
    }
    numbers = {
        "max_abs": max(one.max_abs for own in worst.values() for one in own),
        "min_cosine": min(one.min_cosine for own in worst.values() for one in own),
    }
    for name, own in worst.items():
        numbers[f"max_abs_{name}"] = max(one.max_abs for one in own)
        numbers[f"min_cosine_{name}"] = min(one.min_cosine for one in own)
    for name in ("neighbours", "decisions"):
        shares = [share for one in parities if (share := getattr(one, name)) is not None]
        if shares:
            numbers[name] = min(shares)
    return numbers
