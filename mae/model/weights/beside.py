"""What lies beside weights and tells what tensors cannot: configurations, arguments, headers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mae.errors import CheckpointError
from mae.model.weights.naming import Family, Naming
from mae.model.weights.reading import ForeignWeights, own_hints
from mae.model.weights.shapes import Said

EPS = 1e-6  # of every layer normalisation here, as in the reference code


def said_beside(weights: ForeignWeights, family: Family) -> Said:
    """Return what the files beside `weights` say. Raises CheckpointError for another function."""
    with _sense_in(weights):
        own = Said.from_dict(own_hints(weights))
        if family == "huggingface":
            return own.over(_huggingface(weights.config, weights.preprocessor))
        return own.over(_timm(weights.config)).over(_reference(weights.arguments))


@contextmanager
def _sense_in(weights: ForeignWeights) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"what lies beside the weights of {weights.path} makes no sense: {error}"
        ) from None


def _huggingface(config: dict[str, Any], preprocessor: dict[str, Any]) -> Said:
    height, width = _pair(config.get("image_size"))
    normalises = config.get("norm_pix_loss")
    return Said(
        height=height,
        width=width,
        heads=config.get("num_attention_heads"),
        decoder_heads=config.get("decoder_num_attention_heads"),
        target=None if normalises is None else _target(normalises),
        mask_ratio=config.get("mask_ratio"),
        mean=_floats(preprocessor.get("image_mean")),
        std=_floats(preprocessor.get("image_std")),
    )


def _timm(config: dict[str, Any]) -> Said:
    about = config.get("pretrained_cfg") or {}
    height, width = (about.get("input_size") or (None, None, None))[1:]
    return Said(
        height=height,
        width=width,
        mean=_floats(about.get("mean")),
        std=_floats(about.get("std")),
    )


def _reference(arguments: dict[str, Any]) -> Said:
    normalises = arguments.get("norm_pix_loss")
    height, width = _pair(arguments.get("input_size"))
    return Said(
        height=height,
        width=width,
        target=None if normalises is None else _target(normalises),
        mask_ratio=arguments.get("mask_ratio"),
    )


def notes_beside(weights: ForeignWeights, naming: Naming) -> list[str]:
    """Return remarks on config.json; raises CheckpointError where it means another network."""
    if "hidden_size" not in weights.config:
        return []
    with _sense_in(weights):
        return _compared(weights, naming)


def _compared(weights: ForeignWeights, naming: Naming) -> list[str]:
    config, where = weights.config, weights.path
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise CheckpointError(f"{where} uses the activation {act}, and here it is always gelu")
    embedding = weights.tensors.get(
        next(
            (n for n in weights.tensors if n.endswith(naming.encoder["patch_embed"] + ".weight")),
            "",
        )
    )
    if embedding is not None and embedding.ndim == 4:
        found = tuple(embedding.shape)
        told = (
            config["hidden_size"],
            config.get("num_channels", found[1]),
            *(side or found[2] for side in _pair(config.get("patch_size"))),
        )
        if told != found:
            raise CheckpointError(
                f"{where}: config.json means an embedding of shape {told} and the weights hold "
                f"one of {found}: they do not belong together"
            )
    eps = float(config.get("layer_norm_eps", EPS))
    if eps > EPS:
        raise CheckpointError(
            f"{where} normalises with epsilon {eps:g}, and here it is always {EPS:g}: its outputs "
            "would differ"
        )
    if eps < EPS:
        return [f"epsilon of the normalisations {eps:g} there, {EPS:g} here, as in the reference"]
    return []


def _target(normalises: Any) -> Any:
    return "normalized_pixels" if normalises else "pixels"


def _pair(value: int | Sequence[int] | None) -> tuple[int | None, int | None]:
    if value is None or isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)
