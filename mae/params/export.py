"""params.yaml: what leaves the pipeline as ONNX, the limits it has to keep, and how it is timed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mae.params.base import Count, Feature, NotNegative, Positive, Rate, Section, Share

OnnxPrecision = Literal["fp32", "fp16", "int8", "int8_static"]
Cosine = Annotated[float, Field(gt=0, le=1)]


class ParityLimits(Section):
    """How far an exported file may be from torch in float32, on held-out images.

    max_abs: largest difference of any value; null: not judged. min_cosine: of any image's vector.
    neighbours, decisions: share of images whose nearest neighbour, and whose class by a linear
    probe, must be the same.
    """

    max_abs: NotNegative | None
    min_cosine: Cosine
    neighbours: Share
    decisions: Share


class ParityParams(Section):
    """images: of the test split (of val where it is empty); limits for each precision."""

    images: Positive
    fp32: ParityLimits
    fp16: ParityLimits
    int8: ParityLimits
    int8_static: ParityLimits

    def of(self, precision: OnnxPrecision) -> ParityLimits:
        limits: ParityLimits = getattr(self, precision)
        return limits


class ExportParams(Section):
    """The ONNX files, and the gate they go through.

    resolution `fixed`: images of exactly model.height x width; `dynamic`: of any whole number of
    patches; `resized`: of any height and width, resized and cropped inside the graph. precisions:
    a file each; int8 computes scales while running, int8_static takes them from
    `calibration_images` of train. keep_float: parts whose weights int8 leaves alone. on_refusal:
    what follows from a precision beyond its limits; fp32 always fails. optimize: attention as
    one operator of onnxruntime's own. classifier: a second model, the encoder with a logistic
    head on `feature`, or fine-tuned by `evaluate.finetune` on all labels; null: none.
    """

    opset: Positive
    resolution: Literal["fixed", "dynamic", "resized"]
    precisions: Annotated[tuple[OnnxPrecision, ...], Field(strict=False, min_length=1)]
    on_refusal: Literal["fail", "leave_out"]
    optimize: bool
    calibration_images: Positive
    keep_float: Annotated[
        tuple[Literal["patches", "first_block", "last_block", "mlp", "attention"], ...],
        Field(strict=False),
    ]
    classifier: Literal["logistic", "finetuned"] | None
    feature: Feature
    parity: ParityParams

    @model_validator(mode="after")
    def _float32_first(self) -> Self:
        if "fp32" not in self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise ValueError(
                "precisions must hold fp32, from which the others are made, and each once"
            )
        return self


class BenchmarkParams(Section):
    """The encoder timed on the devices present: torch, compiled torch and each exported file.

    batches: sizes; latency is told at the smallest, throughput at the best. rounds: turns that
    the contenders take; seconds: of each turn. threads: null leaves their number to each.
    """

    batches: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    rounds: Positive
    seconds: Rate
    compile: bool
    threads: Count | None
