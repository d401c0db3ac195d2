"""What is expected of images and scenes, as Great Expectations on small tables of a profile.

Limits and severities are the `validate` section of params.yaml. What must hold of every row is
counted over the whole manifest and expected to be 0 in `overall`; only what is to be seen of
single rows is expected of the sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mae.data import reasons
from mae.data.sharding.splits import SPLITS
from mae.data.validation.drift import Drift, names_in_words
from mae.data.validation.profile import Profile
from mae.params import ValidateParams
from mae.params.validation import Severity

if TYPE_CHECKING:
    import pandas as pd

Table = Literal["overall", "splits", "classes", "reasons", "sample", "drift"]

_HELD_OUT = ("val", "test")
_AGAIN = "shard the data again"
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Rule:
    """One expectation: its class in Great Expectations, the table and column it is about, its
    arguments, and for people what it measures and what to do when it fails."""

    table: Table
    expectation: str
    column: str
    severity: Severity
    limit: dict[str, Any]
    subject: str
    advice: str


def tables_of(profile: Profile, drift: Drift | None) -> dict[Table, "pd.DataFrame"]:
    """Return the tables that the rules are about.

    overall and drift: one row of counts, shares and measures. splits: those that hold images.
    classes: images (scenes: objects) of each class in each split. reasons: inputs left out for
    each. sample: rows of accepted images.
    """
    import pandas as pd

    held = {split: profile.splits[split] for split in SPLITS if profile.splits.get(split)}
    counts = {split: profile.images_or_objects(split) for split in SPLITS}
    tables: dict[Table, pd.DataFrame] = {
        "overall": pd.DataFrame([_overall(profile)]),
        "splits": pd.DataFrame(list(held.items()) or [("none", 0)], columns=["split", "images"]),
        "classes": pd.DataFrame({"name": profile.classes}).assign(
            **{split: list(counts[split].values()) for split in SPLITS}
        ),
        "reasons": pd.DataFrame(list(profile.reasons.items()), columns=["reason", "inputs"]),
        "sample": profile.sample,
    }
    if drift is not None:
        moved = {**drift.measures, "new": len(drift.new), "vanished": len(drift.vanished)}
        tables["drift"] = pd.DataFrame([moved])
    return tables


def _overall(profile: Profile) -> dict[str, float]:
    totals = profile.totals
    accepted = ("duplicates", "near_duplicates", "unlabelled", "blank", "unmarked")
    # What has gone from the source is remembered in the manifest and is no input any more.
    present = max(1, totals["seen"] - totals["gone"])
    train = profile.images_or_objects("train").values()
    return totals | {
        "quarantined_share": totals["quarantined"] / present,
        "set_aside_share": (totals["set_aside"] - totals["gone"]) / present,
        "leaked_share": profile.share("leaked", "held_out"),
        "near_leaked_share": profile.share("near_leaked", "held_out"),
        "marks_dropped_share": totals["marks_dropped"]
        / max(1, totals["marks"] + totals["marks_dropped"]),
        **{f"{name}_share": profile.share(name) for name in accepted},
        **{
            f"{name}_outside_share": count / max(1, totals["accepted"])
            for name, count in profile.outside.items()
        },
        "imbalance": max(train, default=0) / max(1, min(train, default=0)),
        "no_class": sum(
            sum(counts.values())
            for name, counts in profile.labels.items()
            if name not in profile.info.classes
        ),
    }


def rules_for(profile: Profile, drift: Drift | None, params: ValidateParams) -> list[Rule]:
    """Return the rules for a dataset, those that are switched off or about nothing left out."""
    rules = [*_inputs(profile, params), *_copies(params), *_content(profile, params)]
    if profile.info.dataset == "scenes":
        rules += _marks(profile, params)
    elif profile.info.classes:
        rules += _classes(profile, params)
    rules += [*_well_formed(profile), *_drifted(drift, params)]
    return rules


def _inputs(profile: Profile, params: ValidateParams) -> Iterator[Rule]:
    severity = params.severity
    if profile.info.dataset == "images" and params.min_images is not None:
        yield _at_least(
            *("overall", "accepted", severity.min_images, params.min_images),
            "the number of accepted images",
            "add images, or lower validate.min_images",
        )
    yield from _at_most(
        *("quarantined_share", severity.max_quarantined, params.max_quarantined),
        "the share of images quarantined",
        "the reasons are in manifest.parquet; mend the images or raise validate.max_quarantined",
    )
    yield from _at_most(
        *("set_aside_share", severity.max_set_aside, params.max_set_aside),
        "the share of images set aside by choice",
        "see data.duplicates, data.exclude_labels and data/removals.txt, or raise "
        "validate.max_set_aside",
    )
    yield Rule(
        *("splits", "ExpectColumnDistinctValuesToContainSet", "split", severity.splits),
        {"value_set": list(SPLITS)},
        "the splits that hold images",
        "raise data.splits, or add a folder for the split that is empty",
    )


def _copies(params: ValidateParams) -> Iterator[Rule]:
    severity = params.severity
    yield from _at_most(
        *("duplicates_share", severity.max_duplicates, params.max_duplicates),
        "the share of images with the bytes of another",
        "remove the copies (data.duplicates.exact: drop), or raise validate.max_duplicates",
    )
    yield from _at_most(
        *("near_duplicates_share", severity.max_near_duplicates, params.max_near_duplicates),
        "the share of images that look like another",
        "thin them out (data.duplicates.near: drop), or raise validate.max_near_duplicates",
    )
    yield from _at_most(
        *("leaked_share", severity.max_leaked, params.max_leaked),
        "the share of val and test images with the bytes of a train image",
        "remove them from one side (data.duplicates.exact: drop or one_split), or raise "
        "validate.max_leaked",
    )
    yield from _at_most(
        *("near_leaked_share", severity.max_near_leaked, params.max_near_leaked),
        "the share of val and test images that look like a train image",
        "keep them on one side (data.duplicates.near: one_split), or raise "
        "validate.max_near_leaked",
    )


def _content(profile: Profile, params: ValidateParams) -> Iterator[Rule]:
    severity = params.severity
    yield from _at_most(
        *("blank_share", severity.max_blank, params.max_blank),
        "the share of images of one value throughout",
        "look at them: they teach nothing",
    )
    for name in profile.outside:
        low, high = getattr(params, name)
        yield from _at_most(
            *(f"{name}_outside_share", getattr(severity, name), params.max_outside),
            f"the share of images whose {name} is not within {low:g} and {high:g}",
            f"look at them (`mae data inspect`), or widen validate.{name}",
        )
    statistics = profile.info.statistics
    for column, wanted in (
        ("channels", statistics.channels),
        ("bit_depth", statistics.bit_depth),
    ):
        yield from _sampled(
            *(profile, "ExpectColumnValuesToBeInSet", column, severity.converted),
            {"value_set": [wanted]},
            f"the share of images with another {column} than data.{column}",
            "they are converted",
        )


def _classes(profile: Profile, params: ValidateParams) -> Iterator[Rule]:
    severity = params.severity
    yield _none(
        *("no_class", severity.labels, "the number of images whose label is no class"), _AGAIN
    )
    yield from _at_most(
        *("unlabelled_share", severity.max_unlabelled, params.max_unlabelled),
        "the share of images without a label",
        "they are learned from in pretraining only",
    )
    if params.min_per_class:
        yield _at_least(
            *("classes", "train", severity.min_per_class, params.min_per_class),
            "the number of training images in the smallest class",
            "add images to it, drop the class (data.exclude_labels), or lower "
            "validate.min_per_class",
        )
    for split in _HELD_OUT:
        if params.min_per_class_held_out and profile.splits.get(split):
            yield _at_least(
                *("classes", split, severity.min_per_class_held_out),
                params.min_per_class_held_out,
                f"the number of {split} images in the smallest class",
                "its accuracy cannot be told; set data.splits.stratify, or add images",
            )
    yield from _at_most(
        *("imbalance", severity.max_imbalance, params.max_imbalance),
        "the number of training images in the largest class, to one of the smallest,",
        "accuracy will follow the large classes",
    )


def _marks(profile: Profile, params: ValidateParams) -> Iterator[Rule]:
    severity = params.severity
    yield from _at_most(
        *("unmarked_share", severity.max_unmarked, params.max_unmarked),
        "the share of scenes on which nothing is marked",
        "check that annotations and images belong together",
    )
    yield from _at_most(
        *("marks_dropped_share", severity.max_marks_dropped, params.max_marks_dropped),
        "the share of annotations dropped",
        "they have no extent inside the image",
    )
    if params.min_per_category and profile.classes:
        yield _at_least(
            *("classes", "train", severity.min_per_category, params.min_per_category),
            "the number of training objects in the smallest category",
            "it cannot be learned",
        )


def _well_formed(profile: Profile) -> Iterator[Rule]:
    """Faults of the manifest itself: never a matter of limits, always critical."""
    for column, subject in (
        ("no_key", "the number of inputs without a name"),
        ("same_key", "the number of images that share a name"),
        ("same_place", "the number of images that share a place in a shard"),
        *((name, f"the number of images without {name[3:]}") for name in _needed(profile)),
        ("odd_sha256", "the number of images with an impossible sha256"),
        ("too_small", "the number of images with a side below data.min_side"),
        ("too_large", "the number of images above data.max_pixels"),
    ):
        yield _none(column, "critical", subject, _AGAIN)
    if profile.reasons:
        yield Rule(
            *("reasons", "ExpectColumnValuesToBeInSet", "reason", "critical"),
            {"value_set": sorted(reasons.ALL)},
            *("the share of reasons that are unknown", _AGAIN),
        )
    for column, high in (("mean", 1), ("std", 0.5), ("entropy", 8), ("orientation", 8)):
        yield from _sampled(
            *(profile, "ExpectColumnValuesToBeBetween", column, "critical"),
            {"min_value": 1 if column == "orientation" else 0, "max_value": high + _ROUNDING},
            *(f"the share of images with an impossible {column}", _AGAIN),
        )


def _needed(profile: Profile) -> list[str]:
    return [name for name in profile.totals if name.startswith("no_") and name != "no_key"]


def _drifted(drift: Drift | None, params: ValidateParams) -> Iterator[Rule]:
    if drift is None:
        return
    wanted = params.drift
    accept = "if this is meant, run `mae data accept`; else look at what came in"
    kind = {"psi": "population stability index", "ks": "Kolmogorov-Smirnov distance"}
    for column in drift.measures:
        yield Rule(
            *("drift", "ExpectColumnMaxToBeBetween", column, wanted.severity),
            {"max_value": wanted.limit},
            f"the drift of {column} from the accepted data ({kind[wanted.measure]})",
            accept,
        )
    for column, classes, which in (
        ("new", drift.new, "that the accepted data did not have"),
        ("vanished", drift.vanished, "that only the accepted data had"),
    ):
        names = f" ({names_in_words(classes)})" if classes else ""
        yield Rule(
            *("drift", "ExpectColumnMaxToBeBetween", column, wanted.severity, {"max_value": 0}),
            f"the number of classes {which}{names}",
            accept,
        )


def _at_most(
    column: str, severity: Severity, limit: float | None, subject: str, advice: str
) -> Iterator[Rule]:
    if limit is not None:
        expectation = "ExpectColumnMaxToBeBetween"
        yield Rule("overall", expectation, column, severity, {"max_value": limit}, subject, advice)


def _none(column: str, severity: Severity, subject: str, advice: str) -> Rule:
    (rule,) = _at_most(column, severity, 0, subject, advice)
    return rule


def _at_least(
    table: Table, column: str, severity: Severity, limit: float, subject: str, advice: str
) -> Rule:
    expectation = "ExpectColumnMinToBeBetween"
    return Rule(table, expectation, column, severity, {"min_value": limit}, subject, advice)


def _sampled(
    profile: Profile,
    expectation: str,
    column: str,
    severity: Severity,
    limit: dict[str, Any],
    subject: str,
    advice: str,
) -> Iterator[Rule]:
    """About each row of the sample; of a column without any value there is nothing to say."""
    if profile.sample[column].notna().any():
        yield Rule("sample", expectation, column, severity, limit, subject, advice)
