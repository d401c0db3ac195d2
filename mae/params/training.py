"""How something learns: optimiser, augmentation, pretraining, and what a run needs besides."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mae.params.base import Count, NotNegative, Positive, Precision, Range, Rate, Section


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


class DivergenceParams(Section):
    """When a step counts as gone wrong, and what is done about many of them.

    A step whose loss or gradient is not finite, or whose loss is above `spike` times the running
    95 % quantile, changes nothing. After `patience` such steps on end the run goes back to its
    last good checkpoint and on from there at `backoff` times the rate; after `give_up` returns it
    ends. spike null: only what is not finite counts.
    """

    spike: Annotated[float, Field(gt=1)] | None
    patience: Positive
    backoff: Annotated[float, Field(gt=0, le=1)]
    give_up: Count


class PretrainParams(OptimParams):
    """start_from: weights to begin with, a folder such as artifacts/pretrain or one of `mae
    weights import`. shuffle_window: how many shards are mixed at a time, for disks slow at random
    reads; 0 mixes all images. jpeg_decoder: `cuda` decodes, crops and resizes JPEGs on the GPU.
    tf32: float32 products on a GPU with shortened mantissas. ema: decay of the moving average of
    the weights that becomes the encoder; null takes the last weights."""

    start_from: str | None
    betas: Range
    accumulate: Positive
    shuffle_window: Count
    jpeg_decoder: Literal["cpu", "cuda"]
    tf32: bool
    compile: bool
    deterministic: bool
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    divergence: DivergenceParams
    augment: AugmentParams

    @model_validator(mode="after")
    def _micro_batches_are_whole(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} is not a multiple of accumulate {self.accumulate}"
            )
        return self


class ObserveParams(Section):
    """What is looked at while pretraining: every so many epochs (0: never), on so many held-out
    images, with a k-NN of their labels or without."""

    every_epochs: Count
    images: Positive
    knn: bool


class LaunchParams(Section):
    """Processes that share one training run; each takes its part of every batch.

    restarts: how often torchrun may start all of them again after one has failed. sharding:
    `fsdp` divides the weights and the optimiser's state too, for models that do not fit.
    """

    processes: Positive
    nodes: Positive
    rendezvous: str | None
    restarts: Count
    sharding: Literal["ddp", "fsdp"]


class ExecutorParams(Section):
    """Where images are examined and shards written, in parts that come to the same bytes.

    address: of a running Dask scheduler or Ray cluster; null: one on this machine, for the time.
    """

    kind: Literal["threads", "processes", "dask", "ray"]
    address: str | None


class RuntimeParams(Section):
    """What never changes the weights. No stage depends on it.

    keep_checkpoints: the newest so many. keep_every_epochs: one after every so many epochs stays
    for good (null: none).
    """

    device: Literal["auto", "cpu", "cuda"]
    workers: Positive
    cache_mb: Count
    log_every: Positive
    checkpoint_minutes: Rate
    keep_checkpoints: Positive
    keep_every_epochs: Positive | None
    observe: ObserveParams
    trackers: Annotated[tuple[Literal["tensorboard", "dvclive"], ...], Field(strict=False)]
    executor: ExecutorParams
    launch: LaunchParams
