"""The `model` section of params.yaml: the autoencoder, and every choice that the papers vary."""

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from mae.params.base import Count, NotNegative, Pair, Positive, Rate, Section, Share

Method = Literal["mae", "autoencoder", "denoising", "simmim", "convolutional", "supervised"]
Size = Literal["tiny", "small", "base", "large", "huge"]
Positions = Literal["sincos", "learned"]

_MASKING_METHODS = ("mae", "simmim")


class _Shape(NamedTuple):
    dim: int
    depth: int
    heads: int


SIZES: dict[str, _Shape] = {
    "tiny": _Shape(192, 12, 3),
    "small": _Shape(384, 12, 6),
    "base": _Shape(768, 12, 12),
    "large": _Shape(1024, 24, 16),
    "huge": _Shape(1280, 32, 16),
}


class MaskParams(Section):
    """Which patches are hidden.

    ratio: the share hidden, of every image alike; it moves to final_ratio over the epochs, along
    a straight line or half a cosine, where that is given. no_data: the stored number of pixels
    that hold nothing (in all channels): a patch with one is never shown and never predicted.
    """

    kind: Literal["random", "block", "inverse_block", "grid", "mixed"]
    ratio: Annotated[float, Field(ge=0, lt=1)]
    final_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    ramp: Literal["linear", "cosine"] = "linear"
    no_data: Count | None = None

    @property
    def last_ratio(self) -> float:
        """The ratio that training ends with, and that evaluation uses."""
        return self.ratio if self.final_ratio is None else self.final_ratio

    def ratio_at(self, epoch: int, epochs: int) -> float:
        """Return the ratio of one of `epochs` epochs: the first has `ratio`, the last the final."""
        if self.final_ratio is None:
            return self.ratio
        done = epoch / max(1, epochs - 1)
        if self.ramp == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.ratio + (self.final_ratio - self.ratio) * done

    def kept(self, patches: int, ratio: float | None = None) -> int:
        """Return how many of `patches` stay visible: rounded down, as in the reference code.

        The small term keeps 10 x (1 - 0.9) at 1, where binary fractions would make it 0.
        """
        return int(patches * (1 - (self.last_ratio if ratio is None else ratio)) + 1e-6)


class DecoderParams(Section):
    """From encoded patches to predictions.

    mask_tokens: where the tokens that stand for hidden patches come in; `encoder` is the ablation
    at three times the cost. depth 0: a linear head on the encoder's tokens, which needs them
    there. positions: `shared` are the encoder's, brought to this width by the embedding.
    """

    width: Positive
    depth: Count
    heads: Positive
    positions: Literal["sincos", "learned", "shared"] = "sincos"
    mask_tokens: Literal["decoder", "encoder"] = "decoder"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_width(self.width, self.heads, self.positions)
        if self.depth == 0 and self.mask_tokens == "decoder":
            raise ValueError(
                "depth 0 needs mask_tokens: encoder, or nothing would pass between patches"
            )
        return self


class TargetParams(Section):
    """What is predicted of a patch: a section, or a kind alone, as in `target: pixels`.

    pixels; normalized_pixels: less the patch's mean, by its deviation; pca: the first
    `components` of the patches' principal components; tokens: the nearest of `codes` codes, fitted
    to the data, with cross-entropy in place of the loss's kind.
    """

    kind: Literal["pixels", "normalized_pixels", "pca", "tokens"]
    components: Positive = 32
    codes: Annotated[int, Field(ge=2)] = 512

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, content: Any) -> Any:
        return {"kind": content} if isinstance(content, str) else content


class LossParams(Section):
    """How far a prediction is from its target: a section, or a kind alone.

    over: the hidden patches, all, or visible ones too, at visible_weight (discounted). epsilon: of
    charbonnier. alpha: of frequency, weights (1 + radius)^alpha. network, weights: of perceptual,
    a torchvision network and the file of its weights.
    """

    kind: Literal["mse", "l1", "charbonnier", "frequency", "perceptual"] = "mse"
    over: Literal["hidden", "all", "discounted"] = "hidden"
    visible_weight: Share = 0.1
    epsilon: Rate = 1e-3
    alpha: NotNegative = 1.0
    network: str = "vgg16"
    weights: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, content: Any) -> Any:
        return {"kind": content} if isinstance(content, str) else content

    @model_validator(mode="after")
    def _perceptual_has_weights(self) -> Self:
        if self.kind == "perceptual" and self.weights is None:
            raise ValueError(
                f"kind perceptual needs weights: the path of a file with the weights of "
                f"{self.network}"
            )
        return self


class ModelParams(Section):
    """The autoencoder. `patch` is a side or [height, width] in pixels.

    method: `mae`, or another to compare with, made of the same parts (mae/model/methods.py).
    size: a vision transformer's dim, depth and heads by name; null where these three are given.
    For evaluation an image is resized to cover `resize` x (height, width), then centre-cropped.
    pad: fill images up to whole patches; what is added is no data. drop_path: while pretraining.
    checkpointing: compute the encoder's blocks again on the way back, to save memory. noise: of
    method denoising, its deviation in deviations of the data.
    """

    method: Method = "mae"
    size: Size | None = None
    height: Positive
    width: Positive
    resize: Annotated[float, Field(ge=1)]
    patch: Positive | Pair
    dim: Positive
    depth: Positive
    heads: Positive
    mlp_ratio: Rate
    positions: Positions = "sincos"
    pad: bool = False
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    checkpointing: bool = False
    noise: NotNegative = 0.5
    decoder: DecoderParams
    mask: MaskParams
    target: TargetParams
    loss: LossParams = LossParams()

    @model_validator(mode="before")
    @classmethod
    def _named_size(cls, content: Any) -> Any:
        """Put the numbers of a named size in their places."""
        if not isinstance(content, dict):
            return content
        given = {name: content.get(name) for name in _Shape._fields}
        size = content.get("size")
        if size is None:
            missing = [name for name, value in given.items() if value is None]
            if missing:
                raise ValueError(f"{', '.join(missing)}: missing; give them all, or a size")
            return content
        if size not in SIZES:
            return content | {name: value or 4 for name, value in given.items()}
        shape = SIZES[size]._asdict()
        if any(value is not None and value != shape[name] for name, value in given.items()):
            raise ValueError(
                f"size {size} means {', '.join(f'{k} {v}' for k, v in shape.items())}: leave dim, "
                "depth and heads null, or size null"
            )
        return content | shape

    @property
    def patch_size(self) -> tuple[int, int]:
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """The patches down and across an image, the last ones padded where `pad` allows it."""
        ph, pw = self.patch_size
        return -(-self.height // ph), -(-self.width // pw)

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        ph, pw = self.patch_size
        if not self.pad and (self.height % ph or self.width % pw):
            raise ValueError(
                f"an image of {self.height} x {self.width} cannot be cut into patches of "
                f"{ph} x {pw}: choose sides that are multiples of the patch, or pad: true"
            )
        check_width(self.dim, self.heads, self.positions)
        return self

    @model_validator(mode="after")
    def _mask_leaves_work(self) -> Self:
        if self.method not in _MASKING_METHODS:
            return self
        patches = self.grid[0] * self.grid[1]
        for ratio in (self.mask.ratio, self.mask.last_ratio):
            kept = self.mask.kept(patches, ratio)
            if not 0 < kept < patches:
                raise ValueError(
                    f"mask.ratio {ratio} keeps {kept} of {patches} patches: "
                    "at least one must be visible and one hidden"
                )
        return self

    @model_validator(mode="after")
    def _loss_fits_target(self) -> Self:
        target, loss = self.target.kind, self.loss.kind
        if target == "tokens" and loss != "mse":
            raise ValueError(
                f"target.kind tokens is learned by cross-entropy, and loss.kind is {loss}: "
                "leave it at mse"
            )
        if loss == "frequency" and target not in ("pixels", "normalized_pixels"):
            raise ValueError(f"loss.kind frequency looks at pixels, and target.kind is {target}")
        if loss == "perceptual" and target != "pixels":
            raise ValueError(
                f"loss.kind perceptual looks at whole images: target.kind must be pixels "
                f"(it is {target})"
            )
        return self


def check_width(width: int, heads: int, positions: str) -> None:
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of its {heads} heads")
    if positions == "sincos" and width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-D sin-cos positions need")
