"""Each protocol as the page shows it: comparisons, tables, pictures and what must be known."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mae.evaluation.arms import words
from mae.report.comparisons import Comparison
from mae.report.findings import Result, reading
from mae.report.pictures import Picture
from mae.report.protocols import PROTOCOLS, SECTIONS, Explained, Section
from mae.report.story import Story
from mae.report.templating import number, percent, sentence

_QUANTITIES = {
    "rank_me": "RankMe",
    "effective_rank": "effective rank",
    "alpha": "alpha, slope of the spectrum",
    "uniformity": "uniformity",
}
_IN_TABLES = frozenset({"robustness", "test_time", "retrieval"})  # whose tables say it all


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; `caption` says what the numbers are."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True)
class Measured:
    """One protocol. tracks: the comparisons drawn. remarks: what must be known of the numbers;
    left_out: what was asked for and is not there. band: what was published for this very setting,
    beside what was measured."""

    result: Result
    explained: Explained
    tracks: list[Comparison]
    tables: list[Table]
    pictures: list[Picture]
    remarks: list[str]
    left_out: list[str]
    band: str | None

    @property
    def title(self) -> str:
        return self.explained.title

    @property
    def lead(self) -> str | None:
        """The sentence that a protocol gives as its result, if it gives one."""
        return self.result.detail.get("verdict")

    @property
    def seconds(self) -> float | None:
        return self.result.context.get("seconds")


def sections_of(story: Story) -> list[tuple[Section, list[Measured]]]:
    """Return the sections with something to tell; a protocol that is not known here is a task."""
    found = []
    results = story.findings.results
    unknown = [protocol for protocol in results if protocol not in PROTOCOLS]
    for section in SECTIONS:
        protocols = [*section.protocols, *(unknown if section.together else ())]
        measured = [_measured(story, results[one]) for one in protocols if one in results]
        if measured:
            found.append((section, measured))
    return found


def _measured(story: Story, result: Result) -> Measured:
    protocol = result.protocol
    with reading(story.findings.root, protocol):
        made = [] if result.skipped else list(_TABLES.get(protocol, _none)(result))
    return Measured(
        result=result,
        explained=PROTOCOLS.get(protocol) or Explained(result.title, ""),
        tracks=[] if protocol in _IN_TABLES else story.compared(protocol),
        tables=made,
        pictures=[Picture.of(path) for path in story.findings.pictures(protocol)],
        remarks=_sentences(result, "remarks"),
        left_out=_sentences(result, "left_out"),
        band=_band(result),
    )


def _sentences(result: Result, name: str) -> list[str]:
    """Return what a protocol says itself of its numbers, in whole sentences."""
    said = result.detail.get(name) or []
    sentences = [said] if isinstance(said, str) else said
    return [sentence(one) for one in sentences]


def _band(result: Result) -> str | None:
    expected = result.expected
    if expected is None:
        return None
    low, high = expected["low"], expected["high"]
    told = f"Published for this setting: {percent(low)} to {percent(high)} %"
    measured = result.numbers.get(expected["metric"])
    if measured is not None:
        where = "below" if measured < low else "above" if measured > high else "within"
        told += f"; measured: {percent(measured)} %, {where} the band"
    return f"{told} ({expected['source']})."


# --- tables ---------------------------------------------------------------------------------------


def _none(result: Result) -> Iterator[Table]:
    return iter(())


def _in_order(by_name: dict[str, Any]) -> dict[str, Any]:
    """Return the arms, or conditions, with what the others are held against first."""
    return dict(sorted(by_name.items(), key=lambda item: item[0] not in ("pretrained", "clean")))


def _arms(names: Iterable[str]) -> list[str]:
    return [words(name) for name in names]


def _robustness(result: Result) -> Iterator[Table]:
    arms = _in_order(result.detail["accuracy"])
    rows = [["clean", *(percent(arm["clean"]) for arm in arms.values())]]
    for corruption in next(iter(arms.values()))["severities"]:
        means = [_mean(arm["severities"][corruption].values()) for arm in arms.values()]
        rows.append([corruption, *map(percent, means)])
    lost = [
        result.numbers.get("relative_drop" + ("" if name == "pretrained" else f"_{name}"))
        for name in arms
    ]
    rows.append(["lost by corruption", *("" if x is None else f"{percent(x)} %" for x in lost)])
    images = result.detail["images"]["test"]
    yield Table(
        ["", *_arms(arms)],
        rows,
        f"{images:,} test images. Lost by corruption: the share of the clean accuracy.",
    )


def _test_time(result: Result) -> Iterator[Table]:
    rows = [
        [
            name,
            percent(one["accuracy_frozen"]),
            percent(one["accuracy"]),
            f"{one['gained']} / {one['lost']}",
            f"{one['p_value']:.2g}",
        ]
        for name, one in _in_order(result.detail["conditions"]).items()
    ]
    images = result.detail["images"]["test"]
    yield Table(
        ["", "without", "with", "newly right / wrong", "p"],
        rows,
        f"{images:,} test images. p: how likely a change as lopsided is by chance (McNemar's "
        "test); above 0.05 it says nothing.",
    )


def _retrieval(result: Result) -> Iterator[Table]:
    depths = sorted(
        int(depth) for key in result.numbers if (depth := key.removeprefix("recall_at_")).isdigit()
    )
    own = ["map", *(f"recall_at_{depth}" for depth in depths)]
    arms = [key.removeprefix("map_") for key in result.numbers if key.startswith("map_")]
    rows = [
        [
            "mean average precision" if key == "map" else key.replace("_", " "),
            *(percent(result.numbers[name]) for name in (key, *(f"{key}_{arm}" for arm in arms))),
        ]
        for key in own
    ]
    yield Table(["", "pretrained", *_arms(arms)], rows, "In percent.")


def _quality(result: Result) -> Iterator[Table]:
    spread = _in_order(result.detail["spread"])
    rows = [
        [
            f"{name}, {feature} feature",
            *(number(arm.get(feature, {}).get(quantity)) for arm in spread.values()),
        ]
        for feature in ("mean", "cls")
        for quantity, name in _QUANTITIES.items()
        if quantity in spread["pretrained"].get(feature, {})
    ]
    (images,) = result.detail["images"].items()
    yield Table(
        ["", *_arms(spread)],
        rows,
        f"On {images[1]:,} images of {images[0]}. Higher ranks mean that more directions are used; "
        "only encoders of one kind on the same images can be compared by them.",
    )
    if likeness := _likeness(result):
        yield Table(["CKA with the encoder of", "mean feature", "cls feature"], likeness, _CKA)


_CKA = "1: the same up to rotation and scale. It shows how far pretraining has moved the features."


def _likeness(result: Result) -> list[list[str]]:
    untrained = {name: result.numbers.get(f"{name}_random") for name in ("cka", "cka_cls")}
    rows = [("random weights", untrained)] if untrained["cka"] is not None else []
    rows += [(f"step {one['step']:,}", one) for one in result.detail.get("drift", [])]
    return [[name, *(number(one.get(cka)) for cka in ("cka", "cka_cls"))] for name, one in rows]


def _lora(result: Result) -> Iterator[Table]:
    learned, whole = result.numbers["parameters"], result.detail["encoder_parameters"]
    row = [number(learned), number(whole), f"{percent(learned / whole)} %"]
    yield Table(["numbers that learn", "of the encoder's", "share"], [row])


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


_TABLES: dict[str, Callable[[Result], Iterator[Table]]] = {
    "robustness": _robustness,
    "test_time": _test_time,
    "retrieval": _retrieval,
    "quality": _quality,
    "lora": _lora,
}
