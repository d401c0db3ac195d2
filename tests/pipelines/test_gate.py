"""The promotion rule, number by number."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import DataError, MaestroError
from mae.params import GateParams
from mae.params.orchestration import ComparisonParams
from pipelines.decision import Approval, Circumstances, Comparison, Decision, NotCompared
from pipelines.gate import decide, flat_metrics, read_metrics

FINITE = st.floats(-10, 10)


def rule(**changes) -> GateParams:
    return GateParams(metric="probe.accuracy", **changes)


@pytest.mark.parametrize(
    ("champion", "challenger", "margin", "better", "promoted"),
    [
        (0.5, 0.6, 0.0, "higher", True),
        (0.5, 0.5, 0.0, "higher", True),
        (0.5, 0.5, 0.01, "higher", False),
        (0.5, 0.75, 0.25, "higher", True),
        (0.5, 0.49, 0.0, "higher", False),
        (0.5, 0.49, -0.02, "higher", True),
        (0.5, 0.4, 0.0, "lower", True),
        (0.5, 0.6, 0.0, "lower", False),
        (0.5, math.nan, 0.0, "higher", False),
        (math.nan, 0.6, 0.0, "higher", False),
        (0.5, math.inf, 0.0, "higher", False),
    ],
)
def test_margin(
    champion: float, challenger: float, margin: float, better: str, promoted: bool
) -> None:
    decision = decide(
        {"probe.accuracy": champion},
        {"probe.accuracy": challenger},
        rule(margin=margin, better=better),
    )
    assert decision.promote is promoted
    assert "probe.accuracy" in decision.reason


def test_without_champion_the_floors_decide() -> None:
    assert decide(None, {"probe.accuracy": 0.3}, rule()).promote
    assert decide(None, {"probe.accuracy": 0.3}, rule(floors={"probe.accuracy": 0.3})).promote
    low = decide(None, {"probe.accuracy": 0.3}, rule(floors={"probe.accuracy": 0.4}))
    assert not low.promote
    assert low.reason == "probe.accuracy 0.3 misses the floor 0.4"
    assert not decide(None, {"other": 1.0}, rule()).promote


def test_a_guarded_metric_may_not_fall_far() -> None:
    champion = {"probe.accuracy": 0.5, "knn.accuracy": 0.75}
    better = {"probe.accuracy": 0.9, "knn.accuracy": 0.5}
    assert not decide(champion, better, rule(max_drop={"knn.accuracy": 0.2})).promote
    assert decide(champion, better, rule(max_drop={"knn.accuracy": 0.25})).promote
    del better["knn.accuracy"]
    lost = decide(champion, better, rule(max_drop={"knn.accuracy": 1.0}))
    assert not lost.promote
    assert "knn.accuracy cannot be compared: challenger missing" in lost.reason


@pytest.mark.parametrize(("value", "promoted"), [(9.0, True), (10.0, True), (10.1, False)])
def test_ceilings_hold_with_and_without_a_champion(value: float, promoted: bool) -> None:
    numbers = {"probe.accuracy": 0.5, "benchmark.p95_ms": value}
    limited = rule(ceilings={"benchmark.p95_ms": 10})
    assert decide(None, numbers, limited).promote is promoted
    assert decide({"probe.accuracy": 0.4}, numbers, limited).promote is promoted
    assert not decide(None, {"probe.accuracy": 0.5}, limited).promote, "not measured"


@pytest.mark.parametrize(
    ("drift", "promoted"),
    [
        ({"images_mean": 0.1, "images_std": 0.2}, True),
        ({"images_mean": 0.1, "images_std": 0.21}, False),
        ({"images_mean": math.inf, "images_std": 0.1}, False),
        ({}, False),
    ],
)
def test_data_may_not_have_moved_far(drift: dict[str, float], promoted: bool) -> None:
    numbers = {f"validate.drift_{name}": value for name, value in drift.items()}
    challenger = {"probe.accuracy": 0.9, **numbers}
    decision = decide({"probe.accuracy": 0.5}, challenger, rule(max_drift=0.2))
    assert decision.promote is promoted
    assert decision.drift == drift
    assert decide(None, challenger, rule(max_drift=0.2)).promote, "there is nothing to move from"


# --- on the same images ---------------------------------------------------------------------------


def comparison(win_share: float) -> Comparison:
    return Comparison(
        images=100,
        champion_accuracy=0.5,
        challenger_accuracy=0.6,
        difference=0.1,
        low=0.02,
        high=0.18,
        win_share=win_share,
        confidence=0.9,
        resamples=2000,
        margin=0.0,
        feature="cls",
        only_champion=5,
        only_challenger=15,
        exam={"sha256": "ab", "images": 110, "vanished": 10, "relabelled": 0},
    )


COMPARED = ComparisonParams(resamples=2000, confidence=0.9)


@pytest.mark.parametrize(("win_share", "promoted"), [(0.89, False), (0.9, True), (1.0, True)])
def test_an_exam_on_the_same_images_decides_for_accuracies_on_them(
    win_share: float, promoted: bool
) -> None:
    recorded = {"linear_probe.accuracy": 0.9}, {"linear_probe.accuracy": 0.8}  # of other images
    by = GateParams(metric="linear_probe.accuracy", comparison=COMPARED)
    decision = decide(*recorded, by, comparison(win_share))
    assert decision.promote is promoted
    assert [check.rule for check in decision.checks] == ["comparison"]
    assert "as recorded" in decision.remarks[0]
    assert "-0.1" in decision.remarks[0]


def test_another_deciding_metric_must_gain_as_well() -> None:
    by = rule(comparison=COMPARED)
    worse = decide({"probe.accuracy": 0.9}, {"probe.accuracy": 0.8}, by, comparison(1.0))
    assert [(check.rule, check.passed) for check in worse.checks] == [
        ("comparison", True),
        ("margin", False),
    ]
    assert not worse.promote


def test_what_cannot_be_compared_is_not_promoted_unless_there_are_no_labels() -> None:
    numbers = {"probe.accuracy": 0.5}, {"probe.accuracy": 0.9}
    lost = decide(*numbers, rule(comparison=COMPARED), NotCompared("too few left", refused=True))
    assert not lost.promote
    assert "cannot be compared on the same images: too few left" in lost.reason
    none = decide(*numbers, rule(comparison=COMPARED), NotCompared("no labels", refused=False))
    assert none.promote
    assert none.remarks == ("the recorded metrics decide alone: no labels",)


# --- a person has the last word -------------------------------------------------------------------


def test_a_person_can_only_refuse_what_has_passed() -> None:
    passed = decide({"probe.accuracy": 0.5}, {"probe.accuracy": 0.6}, rule(approval=True))
    waiting = passed.answered(Approval("waiting"))
    assert not waiting.promote
    assert waiting.reason == "a person has to approve it"
    approved = waiting.answered(Approval("approved", "command line", "fine"))
    assert approved.promote
    assert approved.reason.endswith("approved (command line): fine")
    assert [check.rule for check in approved.checks] == ["margin", "approval"]
    assert not waiting.answered(Approval("refused", reason="no")).promote
    failed = decide({"probe.accuracy": 0.5}, {"probe.accuracy": 0.4}, rule(approval=True))
    assert not failed.answered(Approval("approved")).promote


@given(FINITE, FINITE, st.floats(0, 5))
def test_two_models_never_both_replace_each_other_by_a_margin(
    one: float, other: float, margin: float
) -> None:
    margin += 1e-9
    forth = decide({"probe.accuracy": one}, {"probe.accuracy": other}, rule(margin=margin))
    back = decide({"probe.accuracy": other}, {"probe.accuracy": one}, rule(margin=margin))
    assert not (forth.promote and back.promote)


def test_the_record_holds_every_number(tmp_path: Path) -> None:
    decision = decide({"probe.accuracy": 0.5}, {"probe.accuracy": 0.6, "x": math.nan}, rule())
    decision.write(tmp_path / "decision.json")
    written = json.loads((tmp_path / "decision.json").read_text())
    assert written["promote"] is True
    assert written["champion"] == {"probe.accuracy": 0.5}
    assert written["challenger"] == {"probe.accuracy": 0.6, "x": "NaN"}
    assert written["checks"][0]["bound"] == 0.0


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    decision = replace(
        decide(
            {"probe.accuracy": 0.5},
            {"probe.accuracy": 0.6, "validate.drift_images_mean": 0.1},
            rule(comparison=COMPARED, max_drift=0.2),
            comparison(0.95),
        ).answered(Approval("waiting")),
        circumstances=Circumstances("encoder", "prod", "v0.1.0", "c0ffee", {"shards": "ab"}),
        decided_at="2026-01-01T00:00:00+00:00",
    )
    decision.write(tmp_path / "decision.json")
    assert Decision.read(tmp_path / "decision.json") == decision
    written = json.loads((tmp_path / "decision.json").read_text())
    assert written["drift"] == {"images_mean": 0.1}
    assert written["champion_version"] == "v0.1.0"
    (tmp_path / "decision.json").write_text("{}")
    with pytest.raises(MaestroError, match="no decision of the gate"):
        Decision.read(tmp_path / "decision.json")


def test_metrics_are_named_by_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "knn.json").write_text(
        '{"accuracy": 0.5, "by_k": {"5": 1}, "note": "x", "ok": true}'
    )
    assert read_metrics(tmp_path) == {"knn.accuracy": 0.5, "knn.by_k.5": 1.0}
    assert flat_metrics({"a": 1}) == {"a": 1.0}
    with pytest.raises(DataError, match="run the pipeline first"):
        read_metrics(tmp_path / "none")
