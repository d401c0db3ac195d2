"""The promotion rule, number by number."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import DataError
from mae.params import GateParams
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


def test_metrics_are_named_by_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "knn.json").write_text(
        '{"accuracy": 0.5, "by_k": {"5": 1}, "note": "x", "ok": true}'
    )
    assert read_metrics(tmp_path) == {"knn.accuracy": 0.5, "knn.by_k.5": 1.0}
    assert flat_metrics({"a": 1}) == {"a": 1.0}
    with pytest.raises(DataError, match="run the pipeline first"):
        read_metrics(tmp_path / "none")
