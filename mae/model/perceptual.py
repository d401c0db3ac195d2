"""A trained torchvision network as the measure of the perceptual loss: its maps, never its weights.

The network is built without weights and filled from a file that the user names; nothing is
downloaded and nothing in the file is executed.
"""

from pathlib import Path
from typing import Self

import torch
import torchvision
from torch import Tensor, nn

from mae.errors import CheckpointError, ParamsError
from mae.model.weights.reading import read_weights

_HEADS = ("classifier.", "fc.", "AuxLogits.", "aux1.", "aux2.")


class PerceptualNetwork(nn.Module):
    """Colour images (N, 3, H, W) -> the maps (N, D, h, w) at the end of each stage.

    Stages end before each pooling (AlexNet, VGG, SqueezeNet) or are the network's own four
    (ResNet and its kin). An image too small for the deeper stages gives fewer maps. The network
    is a constant: it never leaves eval mode, has no parameters, and is in no state dict.
    """

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        _make_constant(self.stages)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for number, stage in enumerate(self.stages):
            if number and min(images.shape[-2:]) < 3:
                break
            images = stage(images)
            maps.append(images)
        return maps

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def load_network(name: str, weights: str | Path | None) -> PerceptualNetwork:
    """Return the torchvision network `name` with the weights of a safetensors or torch file.

    The classifier's weights may be in the file or not. Raises ParamsError for an unknown network
    or no file, CheckpointError for a file that is missing, damaged or of another network.
    """
    if weights is None:
        raise ParamsError(
            f"loss.kind perceptual needs loss.weights: a file with the weights of {name}"
        )
    network = _build(name)
    stages = _stages(network)
    if not stages:
        raise ParamsError(f"loss.network {name} has no stages to compare: use a vgg or resnet")
    _fill(network, read_weights(Path(weights)).tensors, Path(weights), name)
    return PerceptualNetwork(stages)


def _build(name: str) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ParamsError(
            f"torchvision has no network '{name}' for loss.network: use one as "
            f"{', '.join(n for n in known if n.startswith(('vgg', 'resnet')))}"
        )
    # Initial weights would be thrown away: on the meta device they cost nothing.
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None)


def _stages(network: nn.Module) -> list[nn.Module]:
    """Cut the network into stages that share its modules: [] when it is of another kind."""
    if isinstance(network, torchvision.models.ResNet):
        stem = [network.conv1, network.bn1, network.relu, network.maxpool]
        return [
            nn.Sequential(*stem, network.layer1),
            network.layer2,
            network.layer3,
            network.layer4,
        ]
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential):
        return []
    layers = list(features)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *pools]
    ends = [*pools, len(layers)]
    parts = [layers[start:end] for start, end in zip(starts, ends, strict=True)]
    # VGG ends with a pooling, which makes no features.
    return [nn.Sequential(*part) for part in parts if len(part) > 1] if pools else []


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path, name: str) -> None:
    expected = network.state_dict()
    wanted = {key for key in expected if not key.startswith(_HEADS)}
    given = {key: value for key, value in weights.items() if not key.startswith(_HEADS)}
    faults = [f"missing {key}" for key in sorted(wanted - given.keys())]
    faults += [f"unknown {key}" for key in sorted(given.keys() - wanted)]
    faults += [
        f"{key} {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(wanted & given.keys())
        if given[key].shape != expected[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{path} does not hold the weights of {name}: {'; '.join(faults[:3])}{more}"
        )
    network.load_state_dict(given, strict=False, assign=True)


def _make_constant(module: nn.Module) -> None:
    """Make every parameter and buffer a buffer outside the state dict."""
    for part in module.modules():
        tensors = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, tensor in tensors:
            delattr(part, name)
            value = tensor.detach().float() if tensor.is_floating_point() else tensor
            part.register_buffer(name, value, persistent=False)
        if isinstance(part, nn.ReLU):
            part.inplace = False  # the map before it is one of those compared
