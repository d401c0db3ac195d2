"""Progress is read from what training prints, and passed on without holding anybody up."""

import threading

import pytest

from pipelines.progress import Progress, share_done
from tests.pipelines.project import wait_for


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("12:00:00 INFO    pretrain: step 40 of 160, loss 0.3, 2 min left", 0.25),
        ("pretrain: step 170 of 160", 1.0),
        ("step 3 of 0", None),
        ("a footstep 3 of 4", None),
        ("Running stage 'pretrain':", None),
    ],
)
def test_share_done(line: str, share: float | None) -> None:
    assert share_done(line) == share


def test_the_line_that_training_prints_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    """Against the journal's own words, so that neither changes alone."""
    from mae.training.journal import _Progress

    with caplog.at_level("INFO"):
        shown = _Progress("pretrain", 0, 4, shown=True)
        shown.advance()
        shown.tell({"step": 4, "loss": 0.5})
        shown.close()
    assert [share_done(one.getMessage()) for one in caplog.records] == [1.0]


def test_the_last_share_arrives_and_shares_between_may_be_left_out() -> None:
    told: list[float] = []
    progress = Progress(told.append, seconds=0.05)
    for step in range(1, 101):
        progress.see(f"step {step} of 100")
    progress.close()
    assert told[-1] == 1.0
    assert told == sorted(set(told))


def test_without_steps_nothing_is_told() -> None:
    told: list[float] = []
    progress = Progress(told.append)
    progress.see("nothing of the kind")
    progress.close()
    assert told == []


def test_a_receiver_that_hangs_or_fails_delays_nobody(caplog: pytest.LogCaptureFixture) -> None:
    never = threading.Event()
    hanging = Progress(lambda share: never.wait(30), seconds=0.01)
    hanging.see("step 1 of 2")
    hanging.see("step 2 of 2")
    hanging.close()
    never.set()

    failing = Progress(lambda share: 1 / 0, seconds=0.01)
    failing.see("step 1 of 2")
    wait_for(lambda: "progress is shown no longer" in caplog.text)
    failing.see("step 2 of 2")
    failing.close()
