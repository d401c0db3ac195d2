import math

import pytest

from mae.training.schedule import Schedule


def test_warm_up_then_half_a_cosine() -> None:
    schedule = Schedule(peak=1.0, floor=0.1, warmup=10, total=110)
    assert [schedule.lr(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.lr(10) == 1.0
    assert schedule.lr(60) == pytest.approx(0.55)
    assert schedule.lr(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    rates = [schedule.lr(step) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_runs_of_one_step_learn() -> None:
    assert Schedule(peak=1.0, floor=0.0, warmup=0, total=1).lr(0) == 1.0
