"""Small parameters and seeded noise that the tests of the models share."""

from typing import Any

import torch
from torch import Tensor

from mae.params import ModelParams


def model_params(**changes: Any) -> ModelParams:
    values: dict[str, Any] = {
        "height": 16,
        "width": 24,
        "resize": 1.0,
        "patch": 4,
        "dim": 32,
        "depth": 2,
        "heads": 4,
        "mlp_ratio": 2.0,
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "mask": {"kind": "random", "ratio": 0.75},
        "target": {"kind": "normalized_pixels"},
    }
    return ModelParams.model_validate(values | changes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
