"""Was pretraining worth it? Each measured pair of arms, and the answer they give together."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mae.evaluation.arms import words
from mae.evaluation.intervals import interval_over_seeds
from mae.evaluation.outcome import Compared
from mae.report.findings import Result
from mae.report.templating import percent, points

_UNTRAINED = frozenset(words(name) for name in ("scratch", "random", "pixels"))

# Who answers where fine-tuning was not measured, the most telling first.
_NEXT = ("linear_probe", "linear", "detection", "lora", "partial", "few_shot", "knn", "retrieval")


@dataclass(frozen=True)
class Comparison:
    """What the pretrained encoder reaches beside one baseline, by a protocol."""

    protocol: str
    compared: Compared

    @property
    def ours(self) -> float:
        return statistics.fmean(self.compared.pretrained)

    @property
    def theirs(self) -> float:
        return statistics.fmean(self.compared.values)

    @property
    def gain(self) -> float:
        return self.ours - self.theirs

    @property
    def seeds(self) -> int:
        return max(len(self.compared.pretrained), len(self.compared.values))

    @property
    def gains(self) -> tuple[float, ...]:
        """Pretrained minus baseline, seed by seed; empty where the seeds are no pairs."""
        one = self.compared
        if not one.paired or len(one.pretrained) != len(one.values):
            return ()
        return tuple(a - b for a, b in zip(one.pretrained, one.values, strict=True))

    @property
    def margin(self) -> float | None:
        """Half the 95 % interval of the gain over seeds; None for single runs."""
        if self.gains:
            return margin_of(self.gains)
        margins = [margin_of(arm) for arm in (self.compared.pretrained, self.compared.values)]
        known = [margin for margin in margins if margin is not None]
        return math.hypot(*known) if known else None

    @property
    def chance(self) -> float:
        """Two standard errors of the difference of two shares of the test images."""
        if not self.compared.images:
            return 0.0
        variance = sum(share * (1 - share) for share in (self.ours, self.theirs))
        return 2 * math.sqrt(variance / self.compared.images)

    @property
    def outcome(self) -> str:
        """better or worse: by more than other seeds and other test images explain; else level."""
        if abs(self.gain) <= max(self.margin or 0.0, self.chance):
            return "level"
        return "better" if self.gain > 0 else "worse"

    @property
    def without_pretraining(self) -> bool:
        """Whether the baseline saw no other data, as an encoder that the user adds may have."""
        return self.compared.baseline in _UNTRAINED


@dataclass(frozen=True)
class Answer:
    """The headline: a word or two, and the sentence that carries it.
    protocol: whose comparisons gave it."""

    short: str
    sentence: str
    tone: str  # good | mixed | bad | none
    protocol: str | None = None


def margin_of(values: Sequence[float]) -> float | None:
    """Return half the 95 % interval of the mean over seeds; None for a single one."""
    interval = interval_over_seeds(values)
    return None if interval is None else (interval[1] - interval[0]) / 2


def compare(results: dict[str, Result]) -> list[Comparison]:
    """Return every comparison that the results hold, in their order."""
    return [
        Comparison(protocol, compared)
        for protocol, result in results.items()
        for compared in result.comparisons
    ]


def answer(comparisons: list[Comparison]) -> Answer:
    """Return the headline. Fine-tuning decides where it was measured: it is what MAE is for."""
    deciding = _deciding(comparisons)
    if not deciding:
        return Answer(
            "Not measured",
            "No downstream task was measured, so nothing can be said about what pretraining gave.",
            "none",
        )
    outcomes = {one.outcome for one in deciding}
    sentence = " ".join(in_words(one) for one in deciding)
    if outcomes == {"better"} or outcomes == {"better", "level"}:
        short, tone = "Yes", "good"
    elif outcomes == {"level"}:
        short, tone = "Not clearly", "mixed"
    elif "better" in outcomes:
        short, tone = "It depends", "mixed"
    else:
        short, tone = "No", "bad"
    return Answer(short, sentence, tone, deciding[0].protocol)


def _deciding(comparisons: list[Comparison]) -> list[Comparison]:
    flagged = [one for one in comparisons if one.compared.deciding]
    if flagged:
        return flagged
    for protocol in _NEXT:
        of_it = [one for one in comparisons if one.protocol == protocol and one.without_pretraining]
        if of_it:
            return _hardest(of_it)
    return []


def _hardest(comparisons: list[Comparison]) -> list[Comparison]:
    """Keep of each task the best that there is without pretraining."""
    best: dict[str, Comparison] = {}
    for one in comparisons:
        task = one.compared.task
        if task not in best or one.theirs > best[task].theirs:
            best[task] = one
    return list(best.values())


def in_words(one: Comparison) -> str:
    margin = (
        f" (±\u00a0{percent(one.margin)} over {one.seeds} seeds)" if one.margin is not None else ""
    )
    tail = ", which may be chance" if one.outcome == "level" else ""
    return (
        f"{one.compared.task}: {percent(one.ours)}\u00a0% pretrained against "
        f"{percent(one.theirs)}\u00a0% {one.compared.baseline}, "
        f"{points(one.gain)} points{margin}{tail}."
    )
