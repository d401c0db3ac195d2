"""The `validate` section of params.yaml: what data must be like to be trained on."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mae.params.base import Count, NotNegative, Positive, Rate, Section, Share

Severity = Literal["critical", "warning", "info"]
Bounds = Annotated[tuple[NotNegative, NotNegative], Field(strict=False)]
DriftNumber = Literal["height", "width", "bytes", "mean", "std", "entropy"]
DriftName = Literal["label", "split", "channels", "bit_depth", "format"]


class DriftParams(Section):
    """How far the data may move from the version accepted last (`data/reference/`).

    measure: `psi`, the population stability index, or `ks`, the Kolmogorov-Smirnov distance (of
    names: the total variation). columns: [] checks none, nor new and vanished classes.
    """

    measure: Literal["psi", "ks"]
    limit: NotNegative
    severity: Severity
    columns: Annotated[tuple[DriftNumber | DriftName, ...], Field(strict=False)]


class SeverityParams(Section):
    """What crossing a limit means: critical stops the pipeline, a warning asks for a look."""

    min_images: Severity = "critical"
    max_quarantined: Severity = "critical"
    max_set_aside: Severity = "warning"
    max_duplicates: Severity = "critical"
    max_near_duplicates: Severity = "warning"
    max_leaked: Severity = "critical"
    max_near_leaked: Severity = "warning"
    splits: Severity = "critical"  # train, val and test all hold images
    labels: Severity = "critical"  # every label is a class
    min_per_class: Severity = "critical"
    min_per_class_held_out: Severity = "warning"
    max_imbalance: Severity = "info"
    max_unlabelled: Severity = "warning"
    max_blank: Severity = "warning"
    height: Severity = "warning"
    width: Severity = "warning"
    aspect: Severity = "info"
    brightness: Severity = "warning"
    entropy: Severity = "warning"
    converted: Severity = "info"  # other channels or bit depth than the data section asks for
    max_unmarked: Severity = "warning"
    max_marks_dropped: Severity = "warning"
    min_per_category: Severity = "warning"


class ValidateParams(Section):
    """Limits on the data; null checks nothing. Shares are of accepted images where not said.

    max_quarantined, max_set_aside: of all inputs, those that could not be used, and those set
    aside by choice (copies dropped, excluded labels, removals). max_duplicates, max_leaked: the
    same bytes as another image, as a train image; max_near_*: the same look. min_per_class: in
    train; min_per_class_held_out: in val and in test. max_imbalance: largest training class to
    smallest. height, width (pixels), aspect (width / height), brightness (mean pixel, 0 to 1),
    entropy (bits, 0 to 8): ranges that all but `max_outside` of the images keep to.
    max_unmarked, max_marks_dropped: scenes without annotations, annotations without extent;
    min_per_category: training objects. severity: to change a default of SeverityParams.
    """

    min_images: Positive | None
    max_quarantined: Share | None
    max_set_aside: Share | None
    max_duplicates: Share | None
    max_near_duplicates: Share | None
    max_leaked: Share | None
    max_near_leaked: Share | None
    min_per_class: Count | None
    min_per_class_held_out: Count | None
    max_imbalance: Rate | None
    max_unlabelled: Share | None
    max_blank: Share | None
    height: Bounds | None
    width: Bounds | None
    aspect: Bounds | None
    brightness: Bounds | None
    entropy: Bounds | None
    max_outside: Share
    max_unmarked: Share | None
    max_marks_dropped: Share | None
    min_per_category: Count | None
    drift: DriftParams
    severity: SeverityParams

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        for name in ("height", "width", "aspect", "brightness", "entropy"):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"{name} must rise, as in [0.2, 5.0]")
        return self
