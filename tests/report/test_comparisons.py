"""The headline: what counts as a gain, and what the gains say together."""

import pytest
from scipy import stats

from mae.evaluation.outcome import Compared
from mae.report.comparisons import Comparison, answer, compare, in_words
from mae.report.findings import Result
from tests.report.made_up import results


def pair(
    *gains: float,
    protocol: str = "finetune",
    baseline: float = 0.5,
    images: int | None = None,
    other: str = "from scratch",
) -> Comparison:
    compared = Compared(
        task="Fine-tuning, all labels",
        metric="top-1 accuracy",
        pretrained=tuple(baseline + gain for gain in gains),
        baseline=other,
        values=(baseline,) * len(gains),
        paired=len(gains) > 1,
        images=images,
        deciding=protocol == "finetune",
    )
    return Comparison(protocol, compared)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ((0.1, 0.12, 0.11), "better"),
        ((-0.1, -0.12, -0.11), "worse"),
        ((0.1, -0.01, 0.1), "level"),
        ((0.001, 0.08, 0.01), "level"),
        ((0.0, 0.0, 0.0), "level"),
        ((0.2,), "better"),
        ((0.0,), "level"),
    ],
)
def test_a_gain_must_exceed_what_other_seeds_would_give(
    gains: tuple[float, ...], outcome: str
) -> None:
    assert pair(*gains).outcome == outcome


def test_the_margin_is_half_the_interval_of_the_paired_gains() -> None:
    gains = (0.1, 0.2, 0.4)
    low, high = stats.t.interval(0.95, 2, loc=sum(gains) / 3, scale=stats.sem(gains))
    assert pair(*gains).margin == pytest.approx((high - low) / 2)
    assert pair(0.1).margin is None


def test_arms_that_are_no_pairs_add_their_margins_as_squares() -> None:
    arms = (0.5, 0.6, 0.7), (0.2, 0.25, 0.31)
    one = Comparison("linear_probe", Compared("t", "m", arms[0], "random encoder", arms[1]))
    halves = [stats.t.ppf(0.975, 2) * stats.sem(arm) for arm in arms]
    assert one.gains == ()
    assert one.margin == pytest.approx((halves[0] ** 2 + halves[1] ** 2) ** 0.5)


@pytest.mark.parametrize(
    ("gains", "short"),
    [
        ([(0.1, 0.11), (0.001, -0.001)], "Yes"),
        ([(0.1, 0.11), (-0.1, -0.11)], "It depends"),
        ([(0.001, -0.001)], "Not clearly"),
        ([(-0.1, -0.11), (0.001, -0.001)], "No"),
        ([], "Not measured"),
    ],
)
def test_headline(gains: list[tuple[float, ...]], short: str) -> None:
    assert answer([pair(*one) for one in gains]).short == short


def test_fine_tuning_decides_where_it_was_measured() -> None:
    lost = pair(-0.2, -0.21, protocol="knn", other="random encoder")
    assert answer([lost, pair(0.1, 0.11)]).short == "Yes"
    assert answer([lost]).short == "No"


def test_else_the_best_without_pretraining_is_what_counts() -> None:
    over_random = pair(0.3, 0.31, protocol="knn", other="random encoder")
    under_pixels = pair(-0.2, -0.21, protocol="knn", baseline=0.9, other="raw pixels")
    imported = pair(-0.4, -0.41, protocol="knn", baseline=0.95, other="someone_elses")
    found = answer([over_random, under_pixels, imported])
    assert found.short == "No" and "raw pixels" in found.sentence
    assert "someone_elses" not in found.sentence


def test_comparisons_are_read_as_they_were_left() -> None:
    found = compare({name: Result.of(name, one) for name, one in results().items()})
    assert [(one.compared.task, one.compared.baseline) for one in found] == [
        ("Fine-tuning, 10 labels per class", "from scratch"),
        ("Fine-tuning, all labels", "from scratch"),
        ("Linear probe", "random encoder"),
        ("k nearest neighbours", "random encoder"),
        ("k nearest neighbours", "raw pixels"),
    ]
    assert found[0].gain == pytest.approx(0.293)
    assert found[1].outcome == "level" and "may be chance" in in_words(found[1])


def test_a_skipped_protocol_compares_nothing() -> None:
    assert compare({"detection": Result.of("detection", {"skipped": "no scenes"})}) == []


def test_a_comparison_without_values_is_no_result() -> None:
    empty = {"task": "t", "metric": "m", "pretrained": [], "baseline": "b", "values": []}
    with pytest.raises(ValueError, match="without values"):
        Result.of("knn", {"comparisons": [empty]})


def test_a_single_run_counts_only_beyond_chance() -> None:
    def lead(gain: float, images: int) -> str:
        return pair(gain, baseline=0.228, images=images).outcome

    assert lead(0.023, 395) == "level"  # two standard errors are about 0.06 there
    assert lead(0.023, 40_000) == "better"
    assert lead(-0.10, 395) == "worse"
