"""The sections of params.yaml: every knob, its type and its bounds."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
Range = Annotated[tuple[Rate, Rate], Field(strict=False)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Feature = Literal["cls", "mean"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# --- data -------------------------------------------------------------------------------------


class ImagesParams(Section):
    """Where the images for pretraining and classification come from."""

    source: Literal["digits", "folder"]
    path: str | None = None

    @model_validator(mode="after")
    def _path_when_needed(self) -> Self:
        if (self.source == "folder") != (self.path is not None):
            raise ValueError("source 'folder' needs a path; 'digits' takes none (path: null)")
        return self


class ScenesParams(Section):
    """Where the images with boxes and masks come from; `none` skips detection."""

    source: Literal["digits", "coco", "none"]
    path: str | None = None

    @model_validator(mode="after")
    def _path_when_needed(self) -> Self:
        if (self.source == "coco") != (self.path is not None):
            raise ValueError(
                "source 'coco' needs a path; 'digits' and 'none' take none (path: null)"
            )
        return self


class SplitParams(Section):
    """Shares of a source without splits of its own that are held out, by hash of the group."""

    val: Annotated[float, Field(ge=0, lt=1)]
    test: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError("val + test must stay below 1, so that something is left to train on")
        return self


class DataParams(Section):
    images: ImagesParams
    scenes: ScenesParams
    splits: SplitParams
    channels: Positive
    bit_depth: Literal[8, 16]
    min_side: Positive
    max_pixels: Positive
    shard_mb: Positive


class ValidateParams(Section):
    """Bounds of the Great Expectations suites; see mae/data/expectations.py for severities."""

    min_images: Positive
    max_quarantined: Share
    max_duplicates: Share
    max_leaked: Share
    min_per_class: Count


# --- model ------------------------------------------------------------------------------------


class MaskParams(Section):
    kind: Literal["random"]
    ratio: Annotated[float, Field(gt=0, lt=1)]

    def kept(self, patches: int) -> int:
        """Return how many of `patches` stay visible: rounded down, as in the reference code.

        The small term keeps 10 x (1 - 0.9) at 1, where binary fractions would make it 0.
        """
        return int(patches * (1 - self.ratio) + 1e-6)


class DecoderParams(Section):
    width: Positive
    depth: Positive
    heads: Positive

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        _check_width(self.width, self.heads)
        return self


class ModelParams(Section):
    """The autoencoder. `patch` is a side or [height, width] in pixels.

    For evaluation an image is resized to cover `resize` x (height, width), then centre-cropped.
    """

    height: Positive
    width: Positive
    resize: Annotated[float, Field(ge=1)]
    patch: Positive | Pair
    dim: Positive
    depth: Positive
    heads: Positive
    mlp_ratio: Rate
    decoder: DecoderParams
    mask: MaskParams
    target: Literal["pixels", "normalized_pixels"]

    @property
    def patch_size(self) -> tuple[int, int]:
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        ph, pw = self.patch_size
        if self.height % ph or self.width % pw:
            raise ValueError(
                f"an image of {self.height} x {self.width} cannot be cut into patches of "
                f"{ph} x {pw}: choose sides that are multiples of the patch"
            )
        patches = (self.height // ph) * (self.width // pw)
        kept = self.mask.kept(patches)
        if not 0 < kept < patches:
            raise ValueError(
                f"mask.ratio {self.mask.ratio} keeps {kept} of {patches} patches: "
                "at least one must be visible and one hidden"
            )
        _check_width(self.dim, self.heads)
        return self


def _check_width(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of its {heads} heads")
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-D sin-cos positions need")


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
    betas: Range
    accumulate: Positive
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
