"""params.yaml: its sections, and that of data in full."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mae.params.base import Count, Positive, Section
from mae.params.evaluation import EvaluateParams
from mae.params.export import BenchmarkParams, ExportParams
from mae.params.model import ModelParams
from mae.params.orchestration import FlowsParams, RetrainParams
from mae.params.training import PretrainParams, RuntimeParams
from mae.params.validation import ValidateParams

DuplicateRule = Literal["keep", "drop", "one_split"]


# --- data -------------------------------------------------------------------------------------


class ImagesParams(Section):
    """Where the images for pretraining and classification come from."""

    source: Literal["digits", "folder", "webdataset", "table", "huggingface"]
    path: str | None = None

    @model_validator(mode="after")
    def _path_when_needed(self) -> Self:
        _check_path(self.source, self.path)
        return self


class ScenesParams(Section):
    """Where the images with boxes and masks come from; `none` skips detection."""

    source: Literal["digits", "coco", "voc", "label_images", "none"]
    path: str | None = None

    @model_validator(mode="after")
    def _path_when_needed(self) -> Self:
        _check_path(self.source, self.path)
        return self


def _check_path(source: str, path: str | None) -> None:
    if source in ("digits", "none"):
        if path is not None:
            raise ValueError(f"source '{source}' takes none: set path to null")
    elif path is None:
        raise ValueError(f"source '{source}' needs a path")


class SplitParams(Section):
    """Shares of a source without splits of its own that are held out, by hash of the group.

    stratify: hold out the shares of every class, not of the whole; images already sharded stay
    where they are.
    """

    val: Annotated[float, Field(ge=0, lt=1)]
    test: Annotated[float, Field(ge=0, lt=1)]
    stratify: bool

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError("val + test must stay below 1, so that something is left to train on")
        return self


class DuplicateParams(Section):
    """What becomes of images with the same bytes (exact) or the same look (near).

    near_bits: bits of a 64-bit perceptual hash that two images of one look may differ in.
    """

    exact: DuplicateRule
    near: DuplicateRule
    near_bits: Annotated[int, Field(ge=0, le=16)]


class StoreParams(Section):
    """How images lie in the shards of `data.images`; scenes lie there as found.

    form `found`: the bytes as found; `encoded`: encoded anew by `codec`, of 8-bit images jpeg,
    webp (both at `quality`) or png, of 16-bit ones png; `raw`: pixels. short_side: for both,
    larger images are shrunk until their shorter side has so many pixels; null leaves them.
    """

    form: Literal["found", "encoded", "raw"]
    codec: Literal["jpeg", "webp", "png"]
    quality: Annotated[int, Field(ge=1, le=100)]
    short_side: Positive | None


class DataParams(Section):
    """channels, bit_depth: of the pixels a model sees, whatever the files hold (see
    mae/data/decode.py). bands: positions of the channels to take from files that have more.
    depth_range: the 16-bit values that become 0 and 255 where bit_depth is 8.
    """

    images: ImagesParams
    scenes: ScenesParams
    splits: SplitParams
    duplicates: DuplicateParams
    exclude_labels: tuple[str, ...] = Field(strict=False)
    channels: Positive
    bands: Annotated[tuple[Count, ...], Field(strict=False)] | None
    bit_depth: Literal[8, 16]
    depth_range: Annotated[tuple[Count, Count], Field(strict=False)]
    min_side: Positive
    max_pixels: Annotated[int, Field(gt=0, lt=1 << 31)]
    store: StoreParams
    shard_mb: Positive

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        if self.bands is not None and len(self.bands) != self.channels:
            raise ValueError(
                f"bands names {len(self.bands)} channels and channels is "
                f"{self.channels}: make them agree, or bands null"
            )
        low, high = self.depth_range
        if not low < high <= 65535:
            raise ValueError("depth_range must rise and stay within 0 and 65535")
        store = self.store
        if (
            store.form == "encoded"
            and store.codec != "png"
            and (self.bit_depth == 16 or self.channels not in (1, 3))
        ):
            raise ValueError(
                f"store.codec {store.codec} holds 8 bits of 1 or 3 channels: "
                "use png, or store.form raw"
            )
        if (
            store.form == "encoded"
            and store.codec == "png"
            and (self.channels > 4 or (self.bit_depth == 16 and self.channels != 1))
        ):
            raise ValueError(
                "store.codec png holds up to 4 channels of 8 bits or 1 of 16: use store.form raw"
            )
        return self


class Params(Section):
    seed: Count
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    model: ModelParams
    pretrain: PretrainParams
    evaluate: EvaluateParams
    export: ExportParams
    benchmark: BenchmarkParams
    flows: FlowsParams
    retrain: RetrainParams
    runtime: RuntimeParams
