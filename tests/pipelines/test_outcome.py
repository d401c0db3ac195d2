"""Every way in which a stage can end is told apart."""

import pytest

from pipelines.outcome import Outcome, OutcomeReader, log_level


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
        (6, Outcome.CHANGED, 6),
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
    outcome, code, why = read(255, "ERROR: failed to reproduce 'x': missing data 'source': v")
    assert (outcome, code) == (Outcome.FAILED, 255)
    assert why.startswith("failed to reproduce 'x': missing data 'source': v; DVC lacks what")
    assert "'dvc pull'" in why
    plain = read(255, "ERROR: failed to reproduce 'x': the lock file is odd")
    assert plain[2] == "failed to reproduce 'x': the lock file is odd"
    busy = read(255, "ERROR: 'v' is busy, it is being blocked by:", "  (PID 1): dvc repro x")
    assert busy[0] == Outcome.BUSY
    assert read(255)[2] == "exit code 255"


@pytest.mark.parametrize(
    "lines",
    [
        ["ERROR: failed to reproduce 'x': [Errno 28] No space left on device"],
        [
            "12:00:00 ERROR   unforeseen fault",
            "Traceback (most recent call last):",
            "OSError: [Errno 28] No space left on device: 'out'",
            exited(1),
        ],
        [
            "12:00:00 ERROR   runs/x cannot be written ([Errno 122] Disk quota exceeded)",
            exited(1),
        ],
    ],
)
def test_a_full_disk_is_an_outcome_of_its_own(lines: list[str]) -> None:
    outcome, _, why = read(255, *lines)
    assert outcome == Outcome.NO_SPACE
    assert why.endswith("free space and run it again")


def test_what_would_be_the_same_again_is_not_tried_again() -> None:
    again = {outcome for outcome in Outcome if outcome.worth_another_try}
    assert again == {Outcome.KILLED, Outcome.BUSY, Outcome.FAILED}


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("12:00:00 WARNING slow disk", "WARNING"),
        ("12:00:00 ERROR   bad", "ERROR"),
        ("ERROR: failed to reproduce 'x'", "ERROR"),
        ("12:00:00 INFO    step 1 of 2", "INFO"),
        ("Running stage 'x':", "INFO"),
    ],
)
def test_the_level_of_a_line(line: str, level: str) -> None:
    assert log_level(line) == level
