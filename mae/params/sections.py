"""The sections of params.yaml: every knob, its type and its bounds."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mae.params.base import (
    Count,
    Feature,
    NotNegative,
    Positive,
    Precision,
    Range,
    Rate,
    Section,
    Share,
)
from mae.params.model import ModelParams
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


# --- training ---------------------------------------------------------------------------------


class OptimParams(Section):
    """How one task learns. lr = blr x batch / 256, warm-up then half a cosine per step."""

    epochs: Positive
    batch: Positive
    blr: Rate
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    min_lr: NotNegative = 0.0
    clip_grad: Rate | None = None
    precision: Precision

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches per epoch; a set smaller than one batch gives one smaller batch."""
        return max(1, images // self.batch)

    def effective_batch(self, images: int) -> int:
        return min(self.batch, images)

    def lr(self, images: int) -> float:
        return self.blr * self.effective_batch(images) / 256

    def total_steps(self, images: int) -> int:
        return self.epochs * self.steps_per_epoch(images)

    def warmup_steps(self, images: int) -> int:
        """At most a quarter of a short run, so that warm-up never eats the schedule."""
        wanted = round(self.warmup_epochs * self.steps_per_epoch(images))
        return min(wanted, self.total_steps(images) // 4)

    def describe(self, images: int) -> str:
        return (
            f"{images} images, effective batch {self.effective_batch(images)}, "
            f"lr {self.lr(images):.3g} (blr {self.blr:g}), {self.total_steps(images)} steps "
            f"({self.steps_per_epoch(images)} per epoch), warm-up {self.warmup_steps(images)} steps"
        )


class AugmentParams(Section):
    """Random resized crop (area range, aspect range of the crop) and horizontal flip."""

    crop_area: Range
    crop_aspect: Range
    flip: bool

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        if self.crop_area[0] > self.crop_area[1] or self.crop_area[1] > 1:
            raise ValueError("crop_area must rise and end at 1 at most, as in [0.2, 1.0]")
        if self.crop_aspect[0] > self.crop_aspect[1]:
            raise ValueError("crop_aspect must rise, as in [0.75, 1.333]")
        return self


class PretrainParams(OptimParams):
    """shuffle_window: how many shards are mixed at a time, for disks slow at random reads; 0 mixes
    all images. jpeg_decoder: `cuda` decodes, crops and resizes JPEGs on the GPU."""

    betas: Range
    accumulate: Positive
    shuffle_window: Count
    jpeg_decoder: Literal["cpu", "cuda"]
    augment: AugmentParams

    @model_validator(mode="after")
    def _micro_batches_are_whole(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} is not a multiple of accumulate {self.accumulate}"
            )
        return self


# --- evaluation -------------------------------------------------------------------------------


class KnnParams(Section):
    k: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    temperature: Rate
    feature: Feature


class LinearProbeParams(OptimParams):
    feature: Feature
    seeds: Positive


class LabelBudget(Section):
    """Labels per class (null: all of them), the epochs spent on them, and how many draws."""

    labels_per_class: Positive | None
    epochs: Positive
    seeds: Positive


class FinetuneParams(Section):
    budgets: Annotated[tuple[LabelBudget, ...], Field(strict=False, min_length=1)]
    batch: Positive
    blr: Rate
    weight_decay: NotNegative
    warmup_share: Share
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    feature: Feature
    precision: Precision
    augment: AugmentParams

    def optim(self, budget: LabelBudget) -> OptimParams:
        return OptimParams(
            epochs=budget.epochs,
            batch=self.batch,
            blr=self.blr,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_share * budget.epochs,
            precision=self.precision,
        )


class DetectionParams(OptimParams):
    height: Positive
    width: Positive
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    flip: bool


class EvaluateParams(Section):
    knn: KnnParams
    linear_probe: LinearProbeParams
    finetune: FinetuneParams
    detection: DetectionParams


# --- export, runtime --------------------------------------------------------------------------


class ExportParams(Section):
    """The ONNX file and its gate: largest difference and smallest cosine against torch."""

    opset: Positive
    parity_images: Positive
    max_abs: Rate
    min_cosine: Annotated[float, Field(gt=0, le=1)]


class LaunchParams(Section):
    """Processes that share one training run; each takes its part of every batch."""

    processes: Positive
    nodes: Positive
    rendezvous: str | None


class RuntimeParams(Section):
    """What never changes the weights. No stage depends on it."""

    device: Literal["auto", "cpu", "cuda"]
    workers: Positive
    cache_mb: Count
    log_every: Positive
    checkpoint_minutes: Rate
    keep_checkpoints: Positive
    launch: LaunchParams


# --- retraining -------------------------------------------------------------------------------


class GateParams(Section):
    """When a challenger takes the champion's place.

    Metrics are named `<file in artifacts/metrics>.<key>`. `margin` is what the deciding metric
    must gain (a negative one lets a slightly worse but newer model pass); `floors` are the
    smallest values allowed; `max_drop` is how far other metrics may fall behind the champion's.
    """

    metric: str
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    floors: dict[str, float] = Field(default_factory=dict)
    max_drop: dict[str, NotNegative] = Field(default_factory=dict)


class RetrainParams(Section):
    """Which artifact is promoted, when a run is too late to be worth it, and the gate.

    `refresh_sources` runs the stages that read from outside the project although DVC sees no
    change: it cannot know that a folder of images has grown. What they then write decides
    whether anything else has to run.
    """

    artifact: str = "encoder"
    stage: str = "prod"
    workers: Positive = 1
    refresh_sources: bool = True
    max_late_minutes: Rate = 60.0
    gate: GateParams = GateParams(metric="linear_probe.accuracy")


class Params(Section):
    seed: Count
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    model: ModelParams
    pretrain: PretrainParams
    evaluate: EvaluateParams
    export: ExportParams
    retrain: RetrainParams
    runtime: RuntimeParams
