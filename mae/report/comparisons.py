"""Was pretraining worth it? Each measured pair of arms, and the answer they give together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mae.report.findings import Result
from mae.report.templating import percent, points


@dataclass(frozen=True)
class Spread:
    """A number with its standard deviation and values over seeds (one value: no deviation)."""

    mean: float
    std: float = 0.0
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What the pretrained encoder reaches on a task, and the same task without pretraining.

    Shares from 0 to 1. gains: pretrained minus baseline, seed by seed where the arms are paired.
    images: how many test images both arms were measured on.
    """

    protocol: str
    task: str
    metric: str
    pretrained: Spread
    baseline: Spread
    baseline_name: str
    gains: tuple[float, ...] = ()
    images: int | None = None

    @property
    def gain(self) -> float:
        return self.pretrained.mean - self.baseline.mean

    @property
    def seeds(self) -> int:
        return max(1, len(self.pretrained.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the paired gains, or of the wider arm; None for a single run."""
        if len(self.gains) > 1:
            return _std(self.gains)
        return max(self.pretrained.std, self.baseline.std) if self.seeds > 1 else None

    @property
    def chance(self) -> float:
        """Two standard errors of the difference of two shares of `images` test images."""
        if not self.images:
            return 0.0
        variance = sum(arm.mean * (1 - arm.mean) for arm in (self.pretrained, self.baseline))
        return 2 * (variance / self.images) ** 0.5

    @property
    def outcome(self) -> str:
        """better or worse: by more than spread and chance, and in every pair; else `level`."""
        same_sign = all(gain * self.gain > 0 for gain in self.gains or (self.gain,))
        if not same_sign or abs(self.gain) <= max(self.spread or 0.0, self.chance):
            return "level"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Answer:
    """The headline: a word or two, and the sentence that carries it."""

    short: str
    sentence: str
    tone: str  # good | mixed | bad | none


def _std(values: tuple[float, ...]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def compare(results: dict[str, Result]) -> list[Comparison]:
    """Return every comparison the results hold, the one that matters most first."""
    readers = {
        "finetune": _finetune,
        "linear_probe": _linear_probe,
        "detection": _detection,
        "knn": _knn,
    }
    return [
        replace(comparison, images=results[protocol].detail.get("images", {}).get("test"))
        for protocol, read in readers.items()
        if protocol in results and not results[protocol].skipped
        for comparison in read(results[protocol])
    ]


def _finetune(result: Result) -> Iterator[Comparison]:
    for key in result.numbers:
        if not key.startswith("gain_") or key.endswith("_std"):
            continue
        budget = key.removeprefix("gain_")
        runs = result.detail.get(budget, {}).get("runs", [])
        arms = {
            arm: tuple(run[arm]["top1"] for run in runs if arm in run)
            for arm in ("pretrained", "scratch")
        }
        yield Comparison(
            protocol=result.protocol,
            task=f"Fine-tuning, {_budget_in_words(budget)}",
            metric="top-1 accuracy",
            pretrained=_spread(result, f"accuracy_{budget}", arms["pretrained"]),
            baseline=_spread(result, f"accuracy_{budget}_scratch", arms["scratch"]),
            baseline_name="from scratch",
            gains=tuple(a - b for a, b in zip(arms["pretrained"], arms["scratch"], strict=True)),
        )


def _budget_in_words(budget: str) -> str:
    if budget == "all":
        return "all labels"
    count = budget.removesuffix("_per_class")
    return f"{count} label{'' if count == '1' else 's'} per class"


def _linear_probe(result: Result) -> Iterator[Comparison]:
    if "accuracy_random" not in result.numbers:
        return
    arms = {
        arm: tuple(run["top1"] for run in result.detail.get(arm, []))
        for arm in ("pretrained", "random")
    }
    yield Comparison(
        protocol=result.protocol,
        task="Linear probe",
        metric="top-1 accuracy",
        pretrained=_spread(result, "accuracy", arms["pretrained"]),
        baseline=_spread(result, "accuracy_random", arms["random"]),
        baseline_name="random encoder",
    )


def _knn(result: Result) -> Iterator[Comparison]:
    for key, name in (("accuracy_random", "random encoder"), ("accuracy_pixels", "raw pixels")):
        if key in result.numbers:
            yield Comparison(
                protocol=result.protocol,
                task="k-NN",
                metric=f"top-1 accuracy, k = {result.numbers.get('k', 0):g}",
                pretrained=_spread(result, "accuracy"),
                baseline=_spread(result, key),
                baseline_name=name,
            )


def _detection(result: Result) -> Iterator[Comparison]:
    for key, task in (("APbox", "Detection"), ("APmask", "Instance segmentation")):
        if f"{key}_scratch" in result.numbers:
            yield Comparison(
                protocol=result.protocol,
                task=task,
                metric=f"{key}, IoU .50 to .95",
                pretrained=_spread(result, key),
                baseline=_spread(result, f"{key}_scratch"),
                baseline_name="from scratch",
            )


def _spread(result: Result, key: str, values: tuple[float, ...] = ()) -> Spread:
    return Spread(result.numbers[key], result.numbers.get(f"{key}_std", 0.0), values)


def answer(comparisons: list[Comparison]) -> Answer:
    """Return the headline. Fine-tuning decides where it was measured: it is what MAE is for."""
    if not comparisons:
        return Answer(
            "Not measured",
            "No downstream task was measured, so nothing can be said about what pretraining gave.",
            "none",
        )
    deciding = [one for one in comparisons if one.protocol == comparisons[0].protocol]
    outcomes = {one.outcome for one in deciding}
    sentence = " ".join(_in_words(one) for one in deciding)
    if outcomes == {"better"} or outcomes == {"better", "level"}:
        return Answer("Yes", sentence, "good")
    if outcomes == {"level"}:
        return Answer("Not clearly", sentence, "mixed")
    if "better" in outcomes:
        return Answer("It depends", sentence, "mixed")
    return Answer("No", sentence, "bad")


def _in_words(one: Comparison) -> str:
    spread = (
        f" (±\u00a0{percent(one.spread)} over {one.seeds} seeds)" if one.spread is not None else ""
    )
    tail = ", which may be chance" if one.outcome == "level" else ""
    return (
        f"{one.task}: {percent(one.pretrained.mean)}\u00a0% pretrained against "
        f"{percent(one.baseline.mean)}\u00a0% {one.baseline_name}, "
        f"{points(one.gain)} points{spread}{tail}."
    )
