"""params.yaml: how the pipeline is run by the flows, when it is run again, what is promoted."""

from typing import Annotated, Literal

from pydantic import Field

from mae.params.base import Count, NotNegative, Positive, Rate, Section

Event = Literal["failed", "diverged", "invalid_data", "promoted", "rejected", "waiting"]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Confidence = Annotated[float, Field(gt=0.5, lt=1)]


# --- running ----------------------------------------------------------------------------------


class StagePolicy(Section):
    """retries: of a stage that was killed or failed unforeseen, never of one whose data,
    parameters or divergence would be the same again; `retry_seconds` before each.
    timeout_minutes: null: none. tags: Prefect's, which its concurrency limits go by.
    """

    retries: Count = 0
    retry_seconds: NotNegative = 10.0
    timeout_minutes: Rate | None = None
    tags: Names = ()


class FlowsParams(Section):
    """workers: stages side by side. stages: policy by name, where it is not `default`: `pretrain`,
    `evaluate` (all of a matrix), `evaluate@knn`.
    """

    workers: Positive
    default: StagePolicy
    stages: dict[str, StagePolicy]


# --- retraining -------------------------------------------------------------------------------


class ComparisonParams(Section):
    """Champion and challenger on the same images, one by one: share classified rightly by a
    logistic probe on `data/reference/exam.json`'s images, and whether the difference is chance.

    confidence: the share of paired bootstrap `resamples` in which the challenger must win by more
    than the margin.
    """

    resamples: Positive
    confidence: Confidence


class GateParams(Section):
    """When a challenger takes the champion's place.

    Metrics are named `<file in artifacts/metrics>.<key>`. `margin` is what the deciding metric
    must gain (a negative one lets a slightly worse but newer model pass); `floors` are the
    smallest and `ceilings` the largest values allowed (latency, size of the file); `max_drop` is
    how far other metrics may fall behind the champion's; `max_drift` how far the data may have
    moved since the champion's (null: any). `comparison` null: recorded metrics alone decide; else,
    where the metric is the accuracy of knn, linear or linear_probe, the margin is that of the exam.
    `approval`: a person has the last word, in Prefect.
    """

    metric: str
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    floors: dict[str, float] = Field(default_factory=dict)
    ceilings: dict[str, float] = Field(default_factory=dict)
    max_drop: dict[str, NotNegative] = Field(default_factory=dict)
    max_drift: NotNegative | None = None
    comparison: ComparisonParams | None = None
    approval: bool = False


class PublishParams(Section):
    """Where a promotion goes: commits on `branch`; null remotes keep git and DVC at home."""

    branch: str = "retrain"
    git_remote: str | None = None
    dvc_remote: str | None = None


class NotifyParams(Section):
    """A Prefect block (`slack-webhook/team`, `email-server-credentials/ops`, `webhook/ops`) and the
    events it is told of. to: addresses, of e-mail.
    """

    block: str
    events: Annotated[tuple[Event, ...], Field(strict=False, min_length=1)]
    to: Names = ()


class RetrainParams(Section):
    """Which artifact is promoted, when a run is too late to be worth it, and the gate.

    `refresh_sources` runs the stages that read from outside the project although DVC sees no
    change: it cannot know that a folder of images has grown. What they then write decides
    whether anything else has to run. `start_from`: the weights that pretraining begins with.
    `wait_for_data`: nothing is trained while the sources are as they were for the champion.
    """

    artifact: str = "encoder"
    stage: str = "prod"
    refresh_sources: bool = True
    wait_for_data: bool = True
    start_from: Literal["scratch", "champion"] = "scratch"
    max_late_minutes: Rate = 60.0
    gate: GateParams = GateParams(metric="linear_probe.accuracy")
    publish: PublishParams = PublishParams()
    notify: Annotated[tuple[NotifyParams, ...], Field(strict=False)] = ()
