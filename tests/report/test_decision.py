"""What the gate decided is shown rule by rule, with the interval where it belongs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.errors import DataError
from mae.files import write_json
from mae.report.build import CARD, PAGE, build_report
from mae.report.decision import Duel, read_decision
from tests.report.made_up import decision
from tests.report.test_report import words


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    shutil.copytree(project, tmp_path / "copy")
    return tmp_path / "copy"


def told(root: Path, **changes: Any) -> tuple[str, str]:
    """Return the page's text and the card, with a decision."""
    path = root / "runs/retrain/20261121T030000Z/decision.json"
    write_json(path, decision(**changes))
    folder = path.parent / "report"
    build_report(root, folder, decision=path)
    page = (folder / PAGE).read_text("utf-8")
    section = page[page.index('<section id="decision">') :]
    section = section[: section.index("</section>")]
    return words(section), (folder / CARD).read_text("utf-8")


def test_promoted_by_what(copy: Path) -> None:
    text, card = told(copy)
    for part in (
        "Promoted: linear_probe.accuracy rose by 0.025; wins in 97.0 % of the resamples.",
        "The sources grew by 120 images.",
        "✓ linear_probe.accuracy must gain 0.885 0.91 0 linear_probe.accuracy rose by 0.025",
        "✓ export.file_mb at most 4.79 400 export.file_mb is 4.79, at most 400 is allowed",
        "The same 1,440 images, one by one",
        "+2.5",
        "88.5 champion +0.4 to +4.6 91.0 challenger",
        "holds 90 % of 2,000 paired resamples",
        "the margin of +1.0 points",
        "The challenger wins in 97.0 % of them, and must in 90 %.",
        "48 images only the challenger has right, 12 only the champion.",
        "60 of the exam's 1,500 images are gone from the data.",
        "Champion v0.1.0",
        "images mean 0.03",
        "pretrain.loss 0.3",
        "2026-11-21T03:12:45+00:00",
    ):
        assert part in text, part
    assert "changed label" not in text
    assert "**Promoted:** linear_probe.accuracy rose" in card and "- Champion: v0.1.0" in card


def test_kept_by_what(copy: Path) -> None:
    checks = decision()["checks"]
    reason = "the challenger has no such metric"
    checks[0] |= {"passed": False, "challenger": None, "reason": reason}
    text, card = told(
        copy,
        promote=False,
        checks=checks,
        comparison=None,
        reason=f"{reason}.",
        remarks=["the data have no labels: nothing was compared image by image"],
        approval={"answer": "refused", "by": "command line", "reason": "not this week"},
    )
    assert "The champion stays: the challenger has no such metric." in text
    assert "✗ linear_probe.accuracy must gain 0.885 0 the challenger has no such metric" in text
    assert "one by one" not in text
    assert "A person refused, by command line: not this week" in text
    assert "**The champion stays:**" in card


def test_the_first_has_no_champion_beside_it(copy: Path) -> None:
    text, _ = told(copy, champion=None, champion_version=None, comparison=None)
    assert "Promoted, the first: " in text
    assert "Champion none before" in text


def test_a_rule_of_tomorrow_is_told_too(copy: Path) -> None:
    check = {**decision()["checks"][0], "rule": "carbon_budget"}
    assert "carbon budget" in told(copy, checks=[check])[0]


def test_a_report_about_no_decision_says_nothing_of_one(copy: Path) -> None:
    build_report(copy, copy / "report")
    assert 'id="decision"' not in (copy / "report" / PAGE).read_text("utf-8")
    assert "champion" not in (copy / "report" / CARD).read_text("utf-8")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"promote": True}),
        json.dumps(decision(checks=[{"metric": "a"}])),
        json.dumps(decision(comparison={"images": 3})),
        json.dumps(decision(challenger={"accuracy": "good"})),
    ],
)
def test_what_is_no_decision_is_named_and_leaves_the_report_as_it_was(
    copy: Path, content: str
) -> None:
    build_report(copy, copy / "report")
    before = (copy / "report" / PAGE).read_bytes()
    (copy / "decision.json").write_text(content)
    with pytest.raises(DataError, match=r"decision\.json is no decision of the gate"):
        build_report(copy, copy / "report", decision=copy / "decision.json")
    assert (copy / "report" / PAGE).read_bytes() == before


def test_a_decision_that_is_not_there(copy: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_decision(copy / "none.json")


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0, 0.5))
def test_every_mark_is_on_the_line_in_its_order(values: list[float], margin: float) -> None:
    low, difference, high = sorted(values)
    duel = Duel(10, 0.5, 0.5, difference, low, high, margin, 0.5, 0.9, 100, [])
    places = [duel.place(value) for value in (low, difference, high)]
    assert places == sorted(places)
    assert all(0.09 < place < 0.91 for place in (*places, duel.place(margin)))
    assert duel.place(0.0) == 0.5
    assert duel.place(-0.01) < 0.5 < duel.place(0.01)


@pytest.mark.parametrize(
    ("wins", "outcome"), [(0.95, "better"), (0.9, "better"), (0.5, "level"), (0.05, "worse")]
)
def test_colour_follows_the_gates_own_rule(wins: float, outcome: str) -> None:
    assert Duel(10, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, wins, 0.9, 100, []).outcome == outcome
