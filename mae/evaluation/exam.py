"""A frozen exam: two encoders on the same held-out images, image by image.

data/reference/exam.json names test images by key, bytes (sha256) and label. It is set once and
stays, so that versions of years apart are asked the same. Both encoders are measured anew: a
logistic regression on the features of today's training images, as protocol `linear` fits it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor

from mae.data.dataset import read_dataset_info
from mae.data.manifest import read_manifest
from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.evaluation.arms import frozen_arm
from mae.evaluation.feature_cache import features_of
from mae.evaluation.labelled import LabelledSplit, train_and_test, why_not_classifiable
from mae.evaluation.opening import open_labelled
from mae.evaluation.probe import learn_probe
from mae.files import read_json, sha256_of_file, write_json
from mae.hashing import random_bits, uniform
from mae.params import Params
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

FORMAT = 1
IMAGES = 10_000
LEAST = 0.5  # share of the exam that must still be there
_DRAWS = 1 << 22  # of the bootstrap, in memory at a time


@dataclass(frozen=True)
class Exam:
    """The images of an exam that are still test images with the same label.

    test: they, in order. images: of the whole exam; vanished: those that are no test image any
    more; relabelled: those whose label is another now.
    """

    test: LabelledSplit
    images: int
    vanished: int
    relabelled: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "images": self.images,
            "vanished": self.vanished,
            "relabelled": self.relabelled,
        }


@dataclass(frozen=True)
class Difference:
    """How much more of the exam one encoder has right than the other: see `compare`."""

    gain: float
    low: float
    high: float
    win_share: float


def set_exam(shards: Path, path: Path) -> str | None:
    """Write the exam of a dataset: its labelled test images, at most IMAGES of them, chosen by
    their ids alone. Return a sentence on why there can be none, else None.

    One that is there already stays as it is.
    """
    info = read_dataset_info(shards)
    reason = why_not_classifiable(info)
    if path.exists() or reason is not None:
        return None if path.exists() else reason
    if not info.splits.get("test"):
        return f"{shards} has no test images: see data.splits in params.yaml"
    rows = read_manifest(shards).select(["key", "accepted", "split", "label", "sha256"])
    rows = rows.filter(pc.and_(rows["accepted"], pc.equal(rows["split"], "test")))
    rows = rows.filter(pc.is_valid(rows["label"])).to_pylist()
    if not rows:
        return f"no test image of {shards} has a label"
    ids = dict(zip(*_keys_and_ids(shards), strict=True))
    order = random_bits(0, "exam", 0, torch.tensor([ids[row["key"]] for row in rows]), 1)[:, 0]
    chosen = (rows[number] for number in order.argsort(stable=True)[:IMAGES].tolist())
    images = {row["key"]: {"sha256": row["sha256"], "label": row["label"]} for row in chosen}
    write_json(path, {"format": FORMAT, "images": images})
    return None


def _keys_and_ids(shards: Path) -> tuple[list[str], list[int]]:
    reader = ShardReader(shards, "test")
    return reader.keys, reader.ids.tolist()


def read_exam(shards: Path, path: Path) -> Exam:
    """Return what is left of an exam among the images of today.

    They are known by their bytes: one that was renamed is the same, one that was changed is not.
    Raises DataError for a file that is no exam and where less than half of it is left.
    """
    asked = _read(path)
    classes = read_dataset_info(shards).classes
    _, test = train_and_test(shards)
    sha256 = {row["key"]: row["sha256"] for row in _test_rows(shards)}
    here = {
        sha256[test.reader.keys[position]]: row
        for row, position in enumerate(test.positions.tolist())
    }
    found = {key: here[one["sha256"]] for key, one in asked.items() if one["sha256"] in here}
    same = [
        row for key, row in found.items() if classes[int(test.labels[row])] == asked[key]["label"]
    ]
    exam = Exam(
        test=test.take(torch.tensor(sorted(set(same)), dtype=torch.int64)),
        images=len(asked),
        vanished=len(asked) - len(found),
        relabelled=len(found) - len(same),
        sha256=sha256_of_file(path),
    )
    if len(exam.test) < LEAST * exam.images:
        raise DataError(
            f"of the {exam.images} images of {path} {exam.vanished} are no longer among the test "
            f"images and {exam.relabelled} have another label: bring them back, or delete the "
            "file and commit that, so that a new exam is set"
        )
    if exam.vanished or exam.relabelled:
        LOG.warning(
            "of the %d images of %s %d are no longer test images and %d have another label: they "
            "are left out",
            *(exam.images, path, exam.vanished, exam.relabelled),
        )
    return exam


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = read_json(path)
        if content["format"] == FORMAT and content["images"]:
            return content["images"]
        raise ValueError(f"format {content['format']}")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: no exam has been set") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no exam ({error!r}): restore it from git") from None


def _test_rows(shards: Path) -> list[dict[str, str]]:
    rows = read_manifest(shards).select(["key", "sha256", "accepted", "split"])
    return rows.filter(pc.and_(rows["accepted"], pc.equal(rows["split"], "test"))).to_pylist()


# --- sitting it ---------------------------------------------------------------------------------


def correct(params: Params, shards: Path, pretrained: Path, exam: Exam, place: Place) -> Tensor:
    """Return which images of the exam the encoder in `pretrained` gets right: bool (n,).

    Raises DataError for an encoder that does not fit the data, CheckpointError for a damaged one.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        raise DataError(opened)
    _, artifact, train, _ = opened
    feature = params.evaluate.linear.feature
    arm = frozen_arm("pretrained", artifact)
    model = learn_probe(arm, train, feature, params, place).model
    asked = features_of(arm, exam.test, feature, params, place)
    return model.logits(asked).argmax(dim=1).cpu() == exam.test.labels


def compare(
    challenger: Tensor,
    champion: Tensor,
    *,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """Compare two encoders on the same images by a paired bootstrap (Efron, 1979).

    challenger, champion: bool (n,), which images each has right. Each resample draws n images
    with replacement, the same for both. low, high: the percentile interval of the gain that
    holds `confidence` of the resamples. win_share: those in which the gain is above `margin`.
    """
    gains = challenger.double() - champion.double()
    n = len(gains)
    at_a_time = max(1, _DRAWS // n)
    means = torch.cat(
        [
            gains[(uniform(seed, "paired bootstrap", 0, rows, n) * n).long()].mean(dim=1)
            for rows in torch.arange(resamples).split(at_a_time)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    # A gain of exactly the margin, in another order of adding up, is not above it.
    win_share = float((means > margin + 1e-12).double().mean())
    return Difference(float(gains.mean()), low, high, win_share)
