"""Their tensors to ours and back: the same numbers in another order, and no key left over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mae.errors import CheckpointError
from mae.model.encoder import Architecture
from mae.model.positions import sincos_positions
from mae.model.weights.naming import NAMINGS, Family, Naming, block_names, spelling, why_ignored
from mae.model.weights.shapes import Shape

_LISTED = 12  # keys that a message names before it counts


@dataclass(frozen=True)
class Turn:
    """How tensors of theirs become one of ours, and back."""

    ours: Callable[[list[Tensor]], Tensor]
    theirs: Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Pair:
    """One tensor of ours, named as in the autoencoder, and theirs that hold the same numbers."""

    ours: str
    theirs: tuple[str, ...]
    turn: Turn


@dataclass(frozen=True)
class Converted:
    """State dicts in our names: encoder, decoder or None, head {weight, bias} or None."""

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor] | None
    head: dict[str, Tensor] | None
    notes: tuple[str, ...]


def spelled(weights: dict[str, Tensor], family: Family, where: str) -> dict[str, Tensor]:
    """Return the weights under the names of `naming.py`. Raises CheckpointError for twins."""
    renamed = {}
    for name, value in weights.items():
        plain = spelling(name, family)
        if plain in renamed:
            raise CheckpointError(f"{where} holds {plain} under two names")
        renamed[plain] = value
    return renamed


def without_decoder(weights: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    naming = NAMINGS[family]
    roots = (*naming.decoder.values(), naming.decoder_blocks, naming.decoder_positions)
    return {
        name: value
        for name, value in weights.items()
        if not any(name == root or name.startswith(f"{root}.") for root in roots)
    }


def to_ours(weights: dict[str, Tensor], family: Family, shape: Shape, where: str) -> Converted:
    """Convert every weight of theirs. A missing or unknown one is a CheckpointError.

    The class token's position is added to the token: it is a constant of the network there, too.
    """
    naming = NAMINGS[family]
    pairs, notes = _pairs(naming, shape), list(shape.notes)
    biases = {name for pair in pairs if pair.ours.endswith("attn.qkv.bias") for name in pair.theirs}
    no_bias = not biases & weights.keys()
    if no_bias:
        pairs = [pair for pair in pairs if not biases.issuperset(pair.theirs)]
        notes.append("queries, keys and values have no bias there: zeros here")
    ignored = _match(weights, pairs, naming, family, shape, where)
    notes += [f"{name} left out: {reason}" for name, reason in ignored.items()]
    state = {pair.ours: _turned(pair, weights, where) for pair in pairs}
    if no_bias:
        for name in [name for name in state if name.endswith("attn.qkv.weight")]:
            state[name.removesuffix("weight") + "bias"] = torch.zeros(len(state[name]))
    positions = weights[naming.positions]
    state["encoder.cls_token"] = state["encoder.cls_token"] + positions[:, :1]
    if shape.architecture.positions == "learned":
        state["encoder.positions"] = positions[0, 1:].clone()
    if shape.decoder is not None and shape.decoder.learned_positions:
        state["decoder.positions"] = weights[naming.decoder_positions][0, 1:].clone()
    return Converted(
        encoder=_below("encoder.", state),
        decoder=_below("decoder.", state) if shape.decoder else None,
        head=_below("head.", state) if shape.classes else None,
        notes=tuple(notes),
    )


def to_theirs(state: dict[str, Tensor], family: Family, shape: Shape) -> dict[str, Tensor]:
    """Convert weights named as in the autoencoder (and head.*): nothing is left out of them."""
    naming = NAMINGS[family]
    theirs: dict[str, Tensor] = {}
    for pair in _pairs(naming, shape):
        theirs |= zip(pair.theirs, pair.turn.theirs(state[pair.ours]), strict=True)
    grid = shape.architecture.grid
    theirs[naming.positions] = _with_class(
        state.get("encoder.positions", sincos_positions(shape.architecture.dim, grid))
    )
    if shape.decoder is not None:
        theirs[naming.decoder_positions] = _with_class(
            state.get("decoder.positions", sincos_positions(shape.decoder.width, grid))
        )
    return {name: value.contiguous() for name, value in theirs.items()}


def _pairs(naming: Naming, shape: Shape) -> list[Pair]:
    """Return the pair of every tensor but the positions."""
    a, decoder = shape.architecture, shape.decoder
    pairs = [Pair("encoder.cls_token", (naming.encoder["cls_token"],), _SAME)]
    norm = naming.pooled_norm if a.pooled_norm else naming.encoder["norm"]
    modules = [
        ("encoder.patch_embed", (naming.encoder["patch_embed"],)),
        ("encoder.norm", (norm,)),
        *(("encoder." + o, t) for o, t in block_names(naming, a.depth, decoder=False)),
    ]
    if decoder is not None:
        pairs.append(Pair("decoder.mask_token", (naming.decoder["mask_token"],), _SAME))
        modules += [
            ("decoder." + name, (naming.decoder[name],)) for name in ("embed", "norm", "predict")
        ]
        modules += [
            ("decoder." + o, t) for o, t in block_names(naming, decoder.depth, decoder=True)
        ]
    if shape.classes is not None:
        modules.append(("head", (naming.head,)))
    for ours, theirs in modules:
        for part in ("weight", "bias"):
            names = tuple(f"{name}.{part}" for name in theirs)
            pairs.append(Pair(f"{ours}.{part}", names, _turn(f"{ours}.{part}", len(names), a)))
    return pairs


_SAME = Turn(ours=lambda given: given[0], theirs=lambda ours: [ours])


def _turn(ours: str, parts: int, architecture: Architecture) -> Turn:
    c, (ph, pw) = architecture.channels, architecture.patch
    if parts > 1:
        return Turn(ours=torch.cat, theirs=lambda stacked: list(stacked.chunk(parts)))
    if ours == "encoder.patch_embed.weight":
        return Turn(
            ours=lambda given: given[0].flatten(1),
            theirs=lambda weight: [weight.reshape(-1, c, ph, pw)],
        )
    if ours.startswith("decoder.predict"):
        # Theirs predict the pixels of a patch in the order (ph, pw, C), ours (C, ph, pw).
        return Turn(
            ours=lambda given: given[0].unflatten(0, (ph, pw, c)).movedim(2, 0).flatten(0, 2),
            theirs=lambda rows: [rows.unflatten(0, (c, ph, pw)).movedim(0, 2).flatten(0, 2)],
        )
    return _SAME


def _turned(pair: Pair, weights: dict[str, Tensor], where: str) -> Tensor:
    given = [weights[name] for name in pair.theirs]
    try:
        return pair.turn.ours(given)
    except RuntimeError:
        shapes = ", ".join(f"{n} {tuple(weights[n].shape)}" for n in pair.theirs)
        raise CheckpointError(f"{where} has weights of another shape: {shapes}") from None


def _match(
    weights: dict[str, Tensor],
    pairs: list[Pair],
    naming: Naming,
    family: Family,
    shape: Shape,
    where: str,
) -> dict[str, str]:
    """Return the weights that may be left out, and why; any other mismatch is an error."""
    expected = {name for pair in pairs for name in pair.theirs} | {naming.positions}
    if shape.decoder is not None:
        expected.add(naming.decoder_positions)
    ignored = {
        name: reason
        for name in weights.keys() - expected
        if (reason := why_ignored(name, family)) is not None
    }
    missing = sorted(expected - weights.keys())
    unknown = sorted(weights.keys() - expected - ignored.keys())
    strange = sorted(
        name for name in expected & weights.keys() if not weights[name].is_floating_point()
    )
    faults = [
        *(f"missing {name}" for name in missing),
        *(f"unknown {name}" for name in unknown),
        *(f"{name} of {weights[name].dtype}" for name in strange),
    ]
    if faults:
        more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise CheckpointError(
            f"{where} is not the vision transformer that it looks like: "
            f"{', '.join(faults[:_LISTED])}{more}"
        )
    return ignored


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _with_class(positions: Tensor) -> Tensor:
    """Return positions (L, D) as (1, 1 + L, D): nothing is added to the class token."""
    return torch.cat([torch.zeros_like(positions[:1]), positions])[None]
