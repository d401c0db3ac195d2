"""Every way in which a stage can end is told apart."""

import pytest

from pipelines.outcome import Outcome, OutcomeReader


def read(code: int, *lines: str) -> tuple[Outcome, int, str]:
    reader = OutcomeReader()
    for line in lines:
        reader.see(line)
    return reader.result(code)


def exited(code: int) -> str:
    return f"ERROR: failed to reproduce 'x': failed to run: python -m x, exited with {code}"


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("Running stage 'x':", Outcome.DONE),
        ("Stage 'x' didn't change, skipping", Outcome.UNCHANGED),
        ("Stage 'x' is cached - skipping run, checking out outputs", Outcome.RESTORED),
    ],
)
def test_good_ends(line: str, outcome: Outcome) -> None:
    assert read(0, line) == (outcome, 0, "")
    assert outcome.good


@pytest.mark.parametrize(
    ("code", "outcome", "told"),
    [
        (1, Outcome.FAILED, 1),
        (2, Outcome.INVALID_PARAMS, 2),
        (3, Outcome.BAD_DATA, 3),
        (4, Outcome.BAD_CHECKPOINT, 4),
        (5, Outcome.DIVERGED, 5),
        (75, Outcome.INTERRUPTED, 75),
        (-9, Outcome.KILLED, 137),
        (137, Outcome.KILLED, 137),
        (-11, Outcome.KILLED, 139),
        (-15, Outcome.INTERRUPTED, 75),
        (130, Outcome.INTERRUPTED, 75),
    ],
)
def test_bad_ends(code: int, outcome: Outcome, told: int) -> None:
    found = read(255, "Running stage 'x':", exited(code))
    assert found[:2] == (outcome, told)
    assert not outcome.good


def test_the_message_is_the_stages_last_error() -> None:
    lines = [
        "12:00:00 ERROR   first",
        "12:00:01 ERROR   params.yaml has faults:",
        "  seed: bad",
        "12:00:02 INFO    x ended with code 2",
        exited(2),
    ]
    assert read(255, *lines)[2] == "params.yaml has faults:\n  seed: bad"


def test_of_a_traceback_only_the_last_line() -> None:
    lines = [
        "12:00:00 ERROR   unforeseen fault",
        "Traceback (most recent call last):",
        '  File "x.py", line 1',
        "KeyError: 'k'",
        "12:00:02 INFO    x ended",
        exited(1),
    ]
    assert read(255, *lines)[2] == "KeyError: 'k'"


def test_a_stage_that_prints_like_dvc_does_not_mislead() -> None:
    assert read(0, "it exited with 3", "we 'x' didn't change, skipping it")[0] == Outcome.DONE


def test_faults_of_dvc_itself() -> None:
    found = read(255, "ERROR: failed to reproduce 'x': missing data 'source': v")
    assert found == (Outcome.FAILED, 255, "failed to reproduce 'x': missing data 'source': v")
    busy = read(255, "ERROR: 'v' is busy, it is being blocked by:", "  (PID 1): dvc repro x")
    assert busy[0] == Outcome.BUSY
    assert read(255)[2] == "exit code 255"
