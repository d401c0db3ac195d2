from typing import Any

import pytest
import torch

from mae.training.numerics import Numerics, settled
from tests.training.conftest import make_trainer, weights


def test_switches_are_given_back() -> None:
    def switches() -> tuple[Any, ...]:
        return (
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )

    before = switches()
    with settled(Numerics(tf32=True, deterministic=True)):
        assert switches() == ("high", True, True, False)
    with settled(Numerics()):
        assert switches() == ("highest", False, False, True)
    assert switches() == before


def test_a_deterministic_run_is_the_same_run_on_a_cpu(trained: torch.Tensor) -> None:
    trainer = make_trainer(numerics=Numerics(deterministic=True))
    trainer.run()
    assert torch.equal(weights(trainer), trained)


def test_what_cannot_be_compiled_goes_on_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trained: torch.Tensor
) -> None:
    def failing(*arguments: Any, **options: Any) -> Any:
        def call(*more: Any) -> Any:
            raise RuntimeError("no compiler is installed\nmore lines")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    trainer = make_trainer(numerics=Numerics(compile=True))
    trainer.run()
    assert "goes on uncompiled, for torch.compile failed: no compiler is installed" in caplog.text
    assert torch.equal(weights(trainer), trained)


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(trained: torch.Tensor) -> None:
    exact = make_trainer(dropout=0.0)
    exact.run()
    trainer = make_trainer(dropout=0.0, numerics=Numerics(compile=True))
    trainer.run()
    torch.testing.assert_close(weights(trainer), weights(exact), rtol=1e-3, atol=1e-4)
    assert list(trainer.task.state_dict()) == list(exact.task.state_dict())
