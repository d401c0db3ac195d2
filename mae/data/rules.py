"""What is expected of images and scenes, as Great Expectations on the tables of a profile.

Each bound of params.yaml's `validate` section is critical: crossing it stops the pipeline, as
does anything that would break it later. What a person should look at is a warning; what is only
good to know is info.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mae.data.profile import Profile
from mae.data.splits import SPLITS
from mae.params import ValidateParams

Severity = Literal["critical", "warning", "info"]

_MAX_BLANK = 0.05
_MAX_BARE = 0.5
_MAX_IMBALANCE = 100
_ASPECTS = (0.2, 5.0)


@dataclass(frozen=True)
class Rule:
    """One expectation: its class in Great Expectations, the table and column it is about, its
    arguments, and for people what it measures and what to do when it fails."""

    table: Literal["inputs", "accepted", "held_out", "classes"]
    expectation: str
    column: str | None
    severity: Severity
    limit: dict[str, Any]
    subject: str
    advice: str


def rules_for(profile: Profile, params: ValidateParams) -> list[Rule]:
    """Return the rules for a dataset; those about nothing (no held-out image) are left out."""
    rules = [*_counts(profile, params), *_content(profile), *_well_formed(profile)]
    if profile.info.dataset == "scenes":
        rules += _marks(profile)
    return [rule for rule in rules if len(getattr(profile, rule.table)) or rule.column is None]


def _counts(profile: Profile, params: ValidateParams) -> Iterator[Rule]:
    labelled = profile.info.dataset == "images" and bool(profile.info.classes)
    if profile.info.dataset == "images":
        yield Rule(
            *("accepted", "ExpectTableRowCountToBeBetween", None, "critical"),
            {"min_value": params.min_images},
            "the number of accepted images",
            "add images, or lower validate.min_images",
        )
    yield _mean(
        *("inputs", "quarantined", "critical", params.max_quarantined),
        "the share of images quarantined",
        "the reasons are in manifest.parquet; mend the images or raise validate.max_quarantined",
    )
    yield _mean(
        *("accepted", "duplicate", "critical", params.max_duplicates),
        "the share of images with the bytes of another",
        "remove the copies, or raise validate.max_duplicates",
    )
    yield _mean(
        *("held_out", "leaked", "critical", params.max_leaked),
        "the share of val and test images with the bytes of a train image",
        "remove them from one side, or raise validate.max_leaked",
    )
    yield Rule(
        *("accepted", "ExpectColumnDistinctValuesToContainSet", "split", "critical"),
        {"value_set": list(SPLITS)},
        "the splits that hold images",
        "raise data.splits, or add a folder for the split that is empty",
    )
    if labelled and params.min_per_class:
        yield Rule(
            *("classes", "ExpectColumnMinToBeBetween", "train", "critical"),
            {"min_value": params.min_per_class},
            "the number of training images in the smallest class",
            "add images to it, drop the class, or lower validate.min_per_class",
        )
    if labelled:
        yield Rule(
            *("classes", "ExpectColumnMaxToBeBetween", "train", "info"),
            {"max_value": _MAX_IMBALANCE * max(1, int(profile.classes["train"].min()))},
            "the number of training images in the largest class",
            "accuracy will follow the large classes",
        )


def _content(profile: Profile) -> Iterator[Rule]:
    info = profile.info
    yield _mean(
        *("accepted", "blank", "warning", _MAX_BLANK),
        "the share of images of one value throughout",
        "look at them: they teach nothing",
    )
    yield Rule(
        *("accepted", "ExpectColumnValuesToBeInSet", "channels", "info"),
        {"value_set": [info.statistics.channels]},
        "the share of images with other channels than data.channels",
        "they are converted",
    )
    yield Rule(
        *("accepted", "ExpectColumnValuesToBeInSet", "bit_depth", "info"),
        {"value_set": [info.statistics.bit_depth]},
        "the share of images with another bit depth than data.bit_depth",
        "they are converted",
    )
    yield Rule(
        *("accepted", "ExpectColumnValuesToBeBetween", "aspect", "info"),
        {"min_value": _ASPECTS[0], "max_value": _ASPECTS[1]},
        "the share of images that are very long",
        "crops see little of them",
    )


def _well_formed(profile: Profile) -> Iterator[Rule]:
    info = profile.info
    again = "shard the data again"
    yield Rule(
        *("inputs", "ExpectColumnValuesToNotBeNull", "key", "critical", {}),
        *("the share of images without a name", again),
    )
    yield Rule(
        *("accepted", "ExpectColumnValuesToBeUnique", "key", "critical", {}),
        *("the share of images that share a name", again),
    )
    for column in ("split", "sha256", "height", "width", "mean", "std"):
        yield Rule(
            *("accepted", "ExpectColumnValuesToNotBeNull", column, "critical", {}),
            *(f"the share of images without {column}", again),
        )
    for column in ("height", "width"):
        yield Rule(
            *("accepted", "ExpectColumnValuesToBeBetween", column, "critical"),
            {"min_value": info.limits["min_side"]},
            *(f"the share of images whose {column} is below data.min_side", again),
        )
    yield Rule(
        *("accepted", "ExpectColumnValuesToBeBetween", "pixels", "critical"),
        {"max_value": info.limits["max_pixels"]},
        *("the share of images above data.max_pixels", again),
    )
    if info.classes:
        yield Rule(
            *("accepted", "ExpectColumnValuesToBeInSet", "label", "critical"),
            {"value_set": list(info.classes)},
            *("the share of labels that are no class", again),
        )
        yield Rule(
            *("accepted", "ExpectColumnValuesToNotBeNull", "label", "warning", {}),
            "the share of images without a label",
            "they are learned from in pretraining only",
        )


def _marks(profile: Profile) -> Iterator[Rule]:
    yield _mean(
        *("accepted", "bare", "warning", _MAX_BARE),
        "the share of scenes on which nothing is marked",
        "check that annotations and images belong together",
    )
    yield Rule(
        *("accepted", "ExpectColumnMaxToBeBetween", "annotations_dropped", "warning"),
        {"max_value": 0},
        "the most annotations dropped from one scene",
        "they have no extent inside the image",
    )
    yield Rule(
        *("classes", "ExpectColumnMinToBeBetween", "train", "warning"),
        {"min_value": 1},
        "the number of training objects in the smallest category",
        "it cannot be learned",
    )


def _mean(
    table: Literal["inputs", "accepted", "held_out"],
    column: str,
    severity: Severity,
    most: float,
    subject: str,
    advice: str,
) -> Rule:
    limit = {"max_value": most}
    return Rule(table, "ExpectColumnMeanToBeBetween", column, severity, limit, subject, advice)
