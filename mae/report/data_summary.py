"""A dataset in numbers for the report: from dataset.json and the manifest."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mae.data.dataset import DatasetInfo
from mae.data.manifest import read_manifest
from mae.data.sharding.splits import SPLITS
from mae.report.templating import channels

Fact = tuple[str, str]


@dataclass(frozen=True)
class Quarantined:
    """How many inputs were left out for one reason, and the first of them."""

    reason: str
    count: int
    key: str
    detail: str


@dataclass(frozen=True)
class DataSummary:
    """Facts in words, what was left out, and images of each class in each split."""

    info: DatasetInfo
    facts: list[Fact]
    quarantined: list[Quarantined]
    classes: list[tuple[str, dict[str, int]]]

    @property
    def largest_class(self) -> int:
        return max((sum(counts.values()) for _, counts in self.classes), default=0)


def summarise(info: DatasetInfo) -> DataSummary:
    """Read the manifest beside dataset.json and count."""
    manifest = read_manifest(info.folder)
    accepted = manifest.filter(pc.field("accepted"))
    return DataSummary(
        info=info,
        facts=dataset_facts(info) + _shape_facts(accepted),
        quarantined=_quarantined(manifest),
        classes=_classes(info, accepted),
    )


def dataset_facts(info: DatasetInfo) -> list[Fact]:
    """Return what dataset.json says, as (what, how much) in words; a skipped dataset is one."""
    if info.skipped:
        return [("Skipped", info.skipped)]
    statistics = info.statistics
    facts = [
        ("Source", info.layout),
        ("Inputs seen", f"{info.seen:,}"),
        ("Accepted", f"{info.accepted:,}"),
        ("Quarantined", f"{info.quarantined:,}"),
        ("Set aside", f"{info.set_aside:,}" if info.set_aside else ""),
        ("Splits", ", ".join(f"{split} {info.splits.get(split, 0):,}" for split in SPLITS)),
        ("Channels", f"{channels(statistics.channels)} of {statistics.bit_depth} bits"),
        ("Mean pixel", _numbers(statistics.mean)),
        ("Pixel deviation", _numbers(statistics.std)),
        ("Classes", _names(info.classes)),
        ("Categories", _names(info.categories)),
        ("Fingerprint", info.fingerprint[:16]),
    ]
    return [(name, value) for name, value in facts if value]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _names(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} ({shown})"


def _shape_facts(accepted: pa.Table) -> list[Fact]:
    if not accepted.num_rows:
        return []
    facts = []
    for side in ("height", "width"):
        low, middle, high = pc.quantile(accepted[side], q=[0, 0.5, 1]).to_pylist()
        text = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}, median {middle:.0f}"
        facts.append((side.capitalize(), f"{text} pixels"))
    annotations = pc.sum(accepted["annotations"]).as_py()
    if annotations:
        facts.append(("Annotations", f"{annotations:,}"))
    return facts


def _quarantined(manifest: pa.Table) -> list[Quarantined]:
    rows: list[dict[str, Any]] = (
        manifest.filter(~pc.field("accepted")).select(["key", "reason", "detail"]).to_pylist()
    )
    counts = Counter(row["reason"] for row in rows)
    first = {row["reason"]: row for row in reversed(rows)}
    return [
        Quarantined(reason, count, first[reason]["key"], first[reason]["detail"])
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _classes(info: DatasetInfo, accepted: pa.Table) -> list[tuple[str, dict[str, int]]]:
    grouped = accepted.group_by(["label", "split"]).aggregate([([], "count_all")]).to_pylist()
    counts = {(row["label"], row["split"]): row["count_all"] for row in grouped}
    return [
        (name, {split: counts.get((name, split), 0) for split in SPLITS}) for name in info.classes
    ]
