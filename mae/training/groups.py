"""Which parameters decay, and how fast each layer learns."""

from typing import Any

from torch import nn

from mae.model.convolutional import ConvolutionalEncoder
from mae.model.decoder import Decoder
from mae.model.encoder import Encoder


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; biases, norms and other one-dimensional parameters do not.

    Tokens of shape (1, 1, D) are vectors too, whatever their number of axes, and learned
    positions are a table of them.
    """
    return _grouped({id(p): 1.0 for p in module.parameters()}, module, weight_decay)


def layer_decay_groups(
    module: nn.Module,
    encoder: Encoder | ConvolutionalEncoder,
    weight_decay: float,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """Groups whose rate falls by `layer_decay` with each layer away from the head.

    The patch embedding, class token and learned positions are layer 0, block i is layer i + 1,
    and everything outside the blocks (final norm, head) learns at the full rate, as in BEiT and
    the MAE reference code. Scales follow the modules themselves, never their names: adapters in a
    block learn at its rate, and what is frozen has none. Raises ValueError when no layer learns,
    since the decay would then do nothing and nobody would know.
    """
    scales = {id(p): 1.0 for p in module.parameters()}
    if not any(id(p) in scales for p in encoder.parameters()):
        raise ValueError("layer decay: the encoder is no part of the module that learns")
    layers = encoder.layers()
    if not any(p.requires_grad for layer in layers for p in layer):
        raise ValueError("layer decay: no layer of the encoder learns, so there is none to slow")
    for index, layer in enumerate(layers):
        for parameter in layer:
            scales[id(parameter)] = layer_decay ** (len(layers) - index)
    return _grouped(scales, module, weight_decay)


def _grouped(
    scales: dict[int, float], module: nn.Module, weight_decay: float
) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    tables = {id(m.positions) for m in module.modules() if isinstance(m, Encoder | Decoder)}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.squeeze().ndim <= 1 or id(parameter) in tables
        key = (scales[id(parameter)], 0.0 if vector else weight_decay)
        group = {"params": [], "lr_scale": key[0], "weight_decay": key[1]}
        groups.setdefault(key, group)["params"].append(parameter)
    if not groups:
        raise ValueError("nothing to learn: every parameter is frozen")
    return list(groups.values())
