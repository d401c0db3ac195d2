"""The headline: what counts as a gain, and what the gains say together."""

import statistics

import pytest

from mae.report.comparisons import Comparison, Spread, answer, compare
from mae.report.findings import Result
from tests.report.made_up import results


def result(protocol: str, content: dict) -> Result:
    return Result(
        protocol, content.get("numbers", {}), content.get("detail", {}), content.get("skipped"), {}
    )


def pair(*gains: float, protocol: str = "finetune", baseline: float = 0.5) -> Comparison:
    arms = tuple(baseline + gain for gain in gains)
    return Comparison(
        protocol=protocol,
        task="Fine-tuning, all labels",
        metric="top-1 accuracy",
        pretrained=Spread(statistics.fmean(arms), 0.0, arms),
        baseline=Spread(baseline, 0.0, (baseline,) * len(gains)),
        baseline_name="from scratch",
        gains=gains if len(gains) > 1 else (),
    )


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
def test_a_gain_must_exceed_its_spread_in_every_seed(
    gains: tuple[float, ...], outcome: str
) -> None:
    assert pair(*gains).outcome == outcome


def test_spread_is_that_of_the_paired_gains() -> None:
    assert pair(0.1, 0.2, 0.4).spread == pytest.approx(statistics.stdev([0.1, 0.2, 0.4]))
    assert pair(0.1).spread is None


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
    lost = pair(-0.2, -0.21, protocol="knn")
    assert answer([pair(0.1, 0.11), lost]).short == "Yes"
    assert answer([lost]).short == "No"


def test_every_protocol_is_read() -> None:
    content = results()
    content["detection"] = {
        "numbers": {"APbox": 0.4, "APbox_scratch": 0.2, "APmask": 0.3, "APmask_scratch": 0.3}
    }
    found = compare({name: result(name, one) for name, one in content.items()})
    assert [(one.task, one.baseline_name) for one in found] == [
        ("Fine-tuning, 10 labels per class", "from scratch"),
        ("Fine-tuning, all labels", "from scratch"),
        ("Linear probe", "random encoder"),
        ("Detection", "from scratch"),
        ("Instance segmentation", "from scratch"),
        ("k-NN", "random encoder"),
        ("k-NN", "raw pixels"),
    ]
    few_labels = found[0]
    assert few_labels.pretrained.values == (0.891, 0.903, 0.915)
    assert few_labels.gain == pytest.approx(0.293)
    assert found[1].outcome == "level"
    assert found[4].outcome == "level"


def test_a_skipped_protocol_compares_nothing() -> None:
    assert compare({"detection": result("detection", {"skipped": "no scenes"})}) == []


def test_a_single_run_counts_only_beyond_chance() -> None:
    def lead(gain: float, images: int) -> str:
        arms = Spread(0.228 + gain), Spread(0.228)
        return Comparison("finetune", "t", "m", *arms, "from scratch", images=images).outcome

    assert lead(0.023, 395) == "level"  # two standard errors are about 0.06 there
    assert lead(0.023, 40_000) == "better"
    assert lead(-0.10, 395) == "worse"
