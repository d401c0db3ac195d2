"""What network some weights are of: read off the tensors, checked against what is said of them.

The number of heads, the target and the grid of learned positions leave no trace in the shapes.
They come from the command line, else from what lies beside the weights, else from the sizes that
everybody uses; where all three are silent, somebody must say.
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mae.errors import CheckpointError
from mae.model.encoder import Architecture
from mae.model.patches import Size
from mae.model.positions import sincos_positions
from mae.model.weights.naming import Naming
from mae.params import SIZES

TargetKind = Literal["pixels", "normalized_pixels"]

# Single-precision variants of the fixed positions differ from ours by less than this; positions
# that were learned, or stored in 16 bits, by far more.
_SAME_POSITION = 1e-5

_USUAL_HEADS = {shape.dim: shape.heads for shape in SIZES.values()}
_USUAL_DECODER_HEADS = {512: 16}
_DECODER_MLP_RATIO = 4


@dataclass(frozen=True)
class Said:
    """What is said of weights beyond their shapes; None where nothing is."""

    height: int | None = None
    width: int | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    target: TargetKind | None = None
    mask_ratio: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bit_depth: int | None = None
    resize: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be: the files beside weights say anything."""
        for name in ("height", "width", "heads", "decoder_heads"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} {value!r} is no positive number")
        for name, possible in (("target", get_args(TargetKind)), ("bit_depth", (8, 16))):
            if getattr(self, name) not in (None, *possible):
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {possible}")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio {self.mask_ratio} is no share of the patches")
        if self.resize is not None and not self.resize >= 1:
            raise ValueError(f"resize {self.resize} is below 1")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Said":
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
            if name in known
        }
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, other: "Said") -> "Said":
        """Return both together; where both speak, this one is right."""
        return Said(**(other.to_dict() | self.to_dict()))


NOTHING_SAID = Said()


@dataclass(frozen=True)
class DecoderShape:
    width: int
    depth: int
    heads: int
    learned_positions: bool


@dataclass(frozen=True)
class Shape:
    """The network: its encoder, its decoder or None, its classes or None, and remarks."""

    architecture: Architecture
    decoder: DecoderShape | None
    classes: int | None
    notes: tuple[str, ...]


def shape_of(weights: dict[str, Tensor], naming: Naming, said: Said, where: str) -> Shape:
    """Return what network `weights` (spelled as `naming` does) are of. Raises CheckpointError."""
    return _Reader(weights, naming, said, where).shape()


class _Reader:
    def __init__(self, weights: dict[str, Tensor], naming: Naming, said: Said, where: str) -> None:
        self.weights, self.naming, self.said, self.where = weights, naming, said, where
        self.notes: list[str] = []

    def shape(self) -> Shape:
        naming = self.naming
        dim, channels, ph, pw = self._dims(f"{naming.encoder['patch_embed']}.weight", 4)
        fc1 = f"{naming.blocks}.0.{naming.block['mlp.fc1'][0]}.weight"
        grid, learned = self._grid(self._positions(naming.positions, dim))
        architecture = Architecture(
            channels=channels,
            height=grid[0] * ph,
            width=grid[1] * pw,
            patch=(ph, pw),
            dim=dim,
            depth=self._depth(naming.blocks),
            heads=self._heads("heads", dim, _USUAL_HEADS),
            mlp_ratio=_mlp_ratio(dim, self._dims(fc1, 2)[0]),
            positions="learned" if learned else "sincos",
            pooled_norm=f"{naming.pooled_norm}.weight" in self.weights,
        )
        head = self.weights.get(f"{naming.head}.weight")
        return Shape(
            architecture=architecture,
            decoder=self._decoder(architecture),
            classes=None if head is None else len(head),
            notes=tuple(self.notes),
        )

    def _decoder(self, architecture: Architecture) -> DecoderShape | None:
        naming = self.naming
        if f"{naming.decoder['embed']}.weight" not in self.weights:
            return None
        width = self._dims(f"{naming.decoder['embed']}.weight", 2)[0]
        fc1 = f"{naming.decoder_blocks}.0.{naming.block['mlp.fc1'][0]}.weight"
        hidden = self._dims(fc1, 2)[0]
        if hidden != _DECODER_MLP_RATIO * width:
            raise CheckpointError(
                f"{self.where}: the decoder's MLP is {hidden} wide, and here it is always "
                f"{_DECODER_MLP_RATIO} x {width}"
            )
        positions = self._positions(naming.decoder_positions, width)
        if positions.shape[1] != 1 + math.prod(architecture.grid):
            raise CheckpointError(
                f"{self.where}: {naming.decoder_positions} is for {positions.shape[1] - 1} "
                f"patches and the encoder sees {math.prod(architecture.grid)}"
            )
        if positions[0, 0].any():
            raise CheckpointError(
                f"{self.where}: {naming.decoder_positions} gives the class token a position of "
                "its own, which this decoder has no place for; import the encoder alone"
            )
        return DecoderShape(
            width=width,
            depth=self._depth(naming.decoder_blocks),
            heads=self._heads("decoder_heads", width, _USUAL_DECODER_HEADS),
            learned_positions=not is_sincos(positions[0, 1:], architecture.grid),
        )

    def _dims(self, name: str, count: int) -> tuple[int, ...]:
        value = self.weights.get(name)
        if value is None:
            raise CheckpointError(f"{self.where} lacks {name}")
        if value.ndim != count:
            raise CheckpointError(
                f"{self.where}: {name} has shape {tuple(value.shape)}, and a vision transformer's "
                f"has {count} dimensions"
            )
        return tuple(value.shape)

    def _positions(self, name: str, dim: int) -> Tensor:
        """Return positions (1, 1 + L, D): of the class token, then of the patches."""
        found = self._dims(name, 3)
        if found[0] != 1 or found[1] < 2 or found[2] != dim:
            raise CheckpointError(
                f"{self.where}: {name} has shape {found} instead of (1, 1 + patches, {dim})"
            )
        return self.weights[name]

    def _depth(self, blocks: str) -> int:
        pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
        numbers = {int(match[1]) for name in self.weights if (match := pattern.match(name))}
        if not numbers or numbers != set(range(len(numbers))):
            raise CheckpointError(
                f"{self.where} holds blocks {sorted(numbers)} of {blocks}: some are missing"
            )
        return len(numbers)

    def _heads(self, which: Literal["heads", "decoder_heads"], dim: int, usual: Any) -> int:
        option = "--" + which.replace("_", "-")
        heads = getattr(self.said, which)
        if heads is None:
            heads = usual.get(dim)
            if heads is None:
                raise CheckpointError(
                    f"nothing in {self.where} says how many heads share the width of {dim}: "
                    f"give {option}"
                )
            self.notes.append(f"{heads} {which.replace('_', ' ')}: usual for width {dim}, not said")
        if dim % heads:
            raise CheckpointError(f"width {dim} of {self.where} is no multiple of {heads} heads")
        return heads

    def _grid(self, positions: Tensor) -> tuple[Size, bool]:
        """Return the patch grid, and whether its positions are other than the fixed ones."""
        patches = positions.shape[1] - 1
        ph, pw = self._dims(f"{self.naming.encoder['patch_embed']}.weight", 4)[2:]
        said = self._said_grid((ph, pw))
        if said is not None:
            if math.prod(said) != patches:
                raise CheckpointError(
                    f"{self.where} has positions for {patches} patches of {ph} x {pw}, and an "
                    f"image of {said[0] * ph} x {said[1] * pw} has {math.prod(said)}"
                )
            return said, not is_sincos(positions[0, 1:], said)
        grids = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
        for grid in grids:
            if is_sincos(positions[0, 1:], grid):
                return grid, False
        side = math.isqrt(patches)
        if side * side != patches:
            raise CheckpointError(
                f"{self.where} has learned positions for {patches} patches, which is no square: "
                "give --height and --width of its images"
            )
        return (side, side), True

    def _said_grid(self, patch: Size) -> Size | None:
        height, width = self.said.height, self.said.width
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise CheckpointError("give both --height and --width, or neither")
        if height % patch[0] or width % patch[1]:
            raise CheckpointError(
                f"{height} x {width} is no multiple of the patch of {patch[0]} x {patch[1]} in "
                f"{self.where}"
            )
        return height // patch[0], width // patch[1]


def is_sincos(positions: Tensor, grid: Size) -> bool:
    """Whether positions (L, D) are the fixed ones of a grid."""
    if positions.shape[1] % 4:
        return False
    fixed = sincos_positions(positions.shape[1], grid)
    return torch.allclose(positions, fixed, rtol=0, atol=_SAME_POSITION)


def _mlp_ratio(dim: int, hidden: int) -> float:
    """Return the ratio that leads from dim back to hidden, which is rounded down."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)
