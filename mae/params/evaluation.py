"""How an encoder is measured: a section for each protocol."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mae.params.base import (
    Count,
    Feature,
    FrozenFeature,
    NotNegative,
    Positive,
    Precision,
    Rate,
    Section,
    Share,
)
from mae.params.training import AugmentParams, OptimParams

Protocol = Literal[
    "knn",
    "linear",
    "linear_probe",
    "few_shot",
    "finetune",
    "partial",
    "lora",
    "label_budget",
    "quality",
    "retrieval",
    "robustness",
    "test_time",
]
Corruption = Literal["noise", "blur", "contrast", "jpeg"]
Severity = Annotated[int, Field(ge=1, le=5)]
Drop = Annotated[float, Field(ge=0, lt=1)]
Counts = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Rates = Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)]
Corruptions = Annotated[tuple[Corruption, ...], Field(strict=False, min_length=1)]


class KnnParams(Section):
    k: Counts
    temperature: Rate
    feature: FrozenFeature


class LinearParams(Section):
    """Multinomial logistic regression and a linear SVM; the `c` are inverse regularisations."""

    feature: FrozenFeature
    logistic_c: Rates
    svm_c: Rates


class LinearProbeParams(Section):
    """augment null: on features computed once; else the encoder sees new crops every epoch, as
    published."""

    feature: FrozenFeature
    seeds: Positive
    epochs: Positive
    batch: Annotated[int, Field(ge=2)]
    blr: Rates
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    precision: Precision
    augment: AugmentParams | None

    def optim(self, blr: float) -> OptimParams:
        return OptimParams(
            epochs=self.epochs,
            batch=self.batch,
            blr=blr,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
            precision=self.precision,
        )


class FewShotParams(Section):
    """So many labels per class, drawn so many times; logistic regression on the feature."""

    shots: Counts
    draws: Positive
    feature: FrozenFeature


class LabelBudget(Section):
    """Labels per class (null: all of them), the epochs spent on them, and how many draws."""

    labels_per_class: Positive | None
    epochs: Positive
    seeds: Positive


class FinetuneAugmentParams(AugmentParams):
    """randaugment: timm's specification, as in `rand-m9-mstd0.5-inc1`; mixup, cutmix: alpha of
    the Beta distribution, 0 for none; erasing: probability."""

    randaugment: str | None
    mixup: NotNegative
    cutmix: NotNegative
    erasing: Share


class FinetuneParams(Section):
    """freeze_blocks: the patch embedding and so many first blocks do not learn; null: all do."""

    budgets: Annotated[tuple[LabelBudget, ...], Field(strict=False, min_length=1)]
    batch: Positive
    blr: Rates
    weight_decay: NotNegative
    warmup_share: Share
    min_lr: NotNegative
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    drop_path: Drop
    label_smoothing: Drop
    freeze_blocks: Count | None
    feature: Feature
    precision: Precision
    augment: FinetuneAugmentParams

    def optim(self, budget: LabelBudget, blr: float) -> OptimParams:
        return OptimParams(
            epochs=budget.epochs,
            batch=self.batch,
            blr=blr,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_share * budget.epochs,
            min_lr=self.min_lr,
            precision=self.precision,
        )


class PartialParams(LabelBudget):
    """Fine-tuning of the last blocks alone, 0.5 being the MLP of the last; the recipe is
    finetune's."""

    blocks: Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1)]


class LoraParams(LabelBudget):
    """Low-rank adapters (arXiv 2106.09685) on the products of attention; the rest of the recipe is
    finetune's."""

    rank: Positive
    alpha: Rate
    blr: Rates


class LabelBudgetParams(Section):
    """Shares of the labels, the protocols that learn from each, and how many draws.

    steps: what fine-tuning spends on every share.
    """

    shares: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False, min_length=1)
    ]
    protocols: Annotated[
        tuple[Literal["knn", "logistic", "finetune"], ...], Field(strict=False, min_length=1)
    ]
    seeds: Positive
    steps: Positive


class QualityParams(Section):
    """images: held-out ones, at most. collapse: effective rank, as a share of the width, below
    which the features count as collapsed."""

    images: Positive
    collapse: Share


class RetrievalParams(Section):
    """k: neighbours looked at; shown: queries in the picture."""

    feature: FrozenFeature
    k: Counts
    shown: Count


class RobustnessParams(Section):
    """Corrupted test images, `images` of them at most, before each classifier that was learned on
    clean ones."""

    images: Positive
    corruptions: Corruptions
    severities: Annotated[tuple[Severity, ...], Field(strict=False, min_length=1)]
    feature: FrozenFeature


class TestTimeParams(Section):
    """Test-time training (arXiv 2209.07522): `steps` of reconstruction on `views` masks of each
    test image, with plain SGD at `lr`, before it is classified; `online` does not reset between
    images. images: so many of test."""

    __test__ = False  # no test of pytest's

    images: Positive
    steps: Positive
    views: Positive
    lr: Rate
    online: bool
    corruptions: Corruptions
    severity: Severity
    feature: Feature


class DetectionParams(OptimParams):
    height: Positive
    width: Positive
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    drop_path: Drop
    flip: bool


class EvaluateParams(Section):
    """protocols: those that run. minival: the share of train on which each chooses its
    hyper-parameters. baselines: further encoders, a name and a folder or file of weights each."""

    protocols: Annotated[tuple[Protocol, ...], Field(strict=False, min_length=1)]
    minival: Annotated[float, Field(gt=0, lt=1)]
    baselines: dict[str, str]
    knn: KnnParams
    linear: LinearParams
    linear_probe: LinearProbeParams
    few_shot: FewShotParams
    finetune: FinetuneParams
    partial: PartialParams
    lora: LoraParams
    label_budget: LabelBudgetParams
    quality: QualityParams
    retrieval: RetrievalParams
    robustness: RobustnessParams
    test_time: TestTimeParams
    detection: DetectionParams

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        taken = {"pretrained", "random", "pixels", "scratch"} & self.baselines.keys()
        if taken:
            raise ValueError(f"baselines: '{taken.pop()}' is a name of our own: take another")
        if any(not name.isidentifier() for name in self.baselines):
            raise ValueError("baselines: names are made of letters, digits and _")
        return self
