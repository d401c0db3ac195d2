from pathlib import Path

import torch
from torch import nn

from mae.training.average import WeightAverage
from mae.training.numerics import Numerics
from tests.training.conftest import make_trainer, weights


def test_it_is_the_decaying_mean_of_the_weights() -> None:
    layer = nn.Linear(2, 2)
    average = WeightAverage(layer, 0.5)
    expected = layer.weight.detach().clone().double()
    for step in range(20):
        with torch.no_grad():
            layer.weight.copy_(torch.full((2, 2), float(step)))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.tensors["weight"].double(), expected)


def test_within_the_context_the_module_has_the_average() -> None:
    layer = nn.Linear(2, 2)
    average = WeightAverage(layer, 0.9)
    with torch.no_grad():
        layer.weight.add_(1.0)
    last = layer.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(layer.weight, last - 1.0)
    assert torch.equal(layer.weight, last)


def test_a_run_ends_with_the_average_and_continues_it(tmp_path: Path) -> None:
    numerics = Numerics(ema=0.9)
    whole = make_trainer(numerics=numerics)
    whole.run()
    last = make_trainer()
    last.run()
    assert not torch.equal(weights(whole), weights(last))
    average = whole.average
    assert average is not None  # which now holds the last weights
    kept = torch.cat([tensor.flatten() for tensor in average.tensors.values()])
    assert torch.equal(kept, weights(last))
    first = make_trainer(tmp_path, numerics=numerics, runtime={"keep_checkpoints": 100})
    first.run()
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > 20:
            folder.rename(tmp_path / folder.name)
    second = make_trainer(tmp_path, numerics=numerics)
    second.run()
    assert torch.equal(weights(second), weights(whole))
