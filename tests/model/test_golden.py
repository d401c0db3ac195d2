"""Reference losses: a change that should not alter numbers must leave them as they are.

After one that should, write them anew with `python -m tests.model.test_golden`, and say why.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mae.files import read_json, write_json
from mae.hashing import uniform
from mae.model.autoencoder import build_autoencoder, masked_loss
from mae.params import ModelParams, read_params
from mae.training.groups import decay_groups

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "pretraining_steps.json"


def three_steps(params: ModelParams, channels: int) -> dict[str, Any]:
    """Train for three steps on smoothed noise; return the losses and what led to them."""
    model = build_autoencoder(params, channels, seed=0)
    weights = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-3, betas=(0.9, 0.95))
    ids, shape = torch.arange(64), (channels, params.height, params.width)
    losses, visible = [], []
    for step in range(3):
        pixels = uniform(0, "golden", step, ids, channels * params.height * params.width)
        images = (pixels.float() * 3.4 - 1.7).reshape(64, *shape)
        images = F.avg_pool2d(images, kernel_size=3, stride=1, padding=1) * 3
        outcome = model(images, ids, seed=0, epoch=step)
        loss = masked_loss(outcome)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        visible.append(outcome.masking.keep[0].tolist())
    return {"weights": weights, "visible": visible, "losses": losses}


@pytest.mark.parametrize("case", ["default", "normalized_pixels"])
def test_three_steps_are_what_they_were(case: str) -> None:
    golden = read_json(GOLDEN)[case]
    found = three_steps(ModelParams(**golden["params"]), golden["channels"])
    assert found["visible"] == golden["visible"]
    assert found["weights"] == pytest.approx(golden["weights"], rel=1e-7)
    assert found["losses"] == pytest.approx(golden["losses"], rel=3e-6)


def write() -> None:
    default = read_params(ROOT / "params.yaml").model
    other = default.model_copy(
        update={
            "height": 16,
            "patch": (4, 8),
            "target": default.target.model_copy(update={"kind": "normalized_pixels"}),
        }
    )
    cases = {"default": (default, 1), "normalized_pixels": (other, 3)}
    content = {
        name: {
            "params": params.model_dump(mode="json"),
            "channels": channels,
            **three_steps(params, channels),
        }
        for name, (params, channels) in cases.items()
    }
    write_json(GOLDEN, content)


if __name__ == "__main__":
    write()
