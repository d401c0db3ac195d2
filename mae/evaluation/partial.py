"""Partial fine-tuning (arXiv 2111.06377, section 4.3): the last blocks learn, others are frozen.

0 blocks is a linear layer alone, 0.5 the MLP of the last block. Beside it a random encoder of the
same shape learns as much: with nothing learned there is nothing to freeze, so from scratch would
be the same as fine-tuning's. The recipe is fine-tuning's.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae.evaluation.arms import words
from mae.evaluation.budgets import Measured, budget_words, check_budget, measure, top1_of
from mae.evaluation.drawing import colours_of, write_png
from mae.evaluation.learning import LearningArm, Setting, frozen_start_arms, why_no_blocks
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Compared, Outcome, compared, suffix_of
from mae.model.freezing import last_blocks, learn_only
from mae.model.heads import Classifier
from mae.params import Params
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

PROTOCOL = "partial"


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Tune each number of blocks on the labels of each seed, and draw accuracy by blocks.

    Numbers beyond the encoder's depth are left out, in words. Raises DataError for an encoder that
    does not fit the data or a budget that cannot be met, ParamsError for a number of blocks that
    is no multiple of a half.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    reason = why_no_blocks(artifact)
    if reason is not None:
        return Outcome(PROTOCOL, skipped=reason)
    setting = Setting(params, train, test, info.classes, place)
    partial, depth = params.evaluate.partial, len(artifact.encoder.blocks)
    check_budget(setting, partial, params.evaluate.finetune.blr)
    counts = sorted({count for count in partial.blocks if count <= depth})
    for count in counts:  # what cannot be tuned is said before anything is
        last_blocks(artifact.encoder, count)
    arms = frozen_start_arms(params, artifact)
    measured = {
        count: {name: _tuned(setting, arm, count) for name, arm in arms.items()} for count in counts
    }
    if place.leads:
        draw_by_blocks(pictures / "partial.png", measured, budget_words(partial))
    return Outcome(
        PROTOCOL,
        _numbers(measured),
        _comparisons(measured, budget_words(partial), len(setting.test)),
        detail={
            "images": {split.name: len(split) for split in (setting.train, setting.test)},
            "encoder_parameters": sum(p.numel() for p in artifact.encoder.parameters()),
            "blocks": {
                f"{count:g}": {name: one.to_dict(info.classes) for name, one in by_arm.items()}
                for count, by_arm in measured.items()
            },
            "left_out": _left_out(partial.blocks, depth),
            "pictures": ["partial.png"],
        },
    )


def _tuned(setting: Setting, arm: LearningArm, count: float) -> Measured:
    """Learn the last `count` blocks of an arm, if any, and the linear layer."""

    def adapt(classifier: Classifier) -> None:
        chosen = last_blocks(classifier.encoder, count)
        learn_only(classifier, [*chosen, *classifier.head.parameters()])

    if count == 0:
        arm = replace(arm, layer_decay=1.0)  # no layer of the encoder learns
    params = setting.params.evaluate
    found = measure(setting, arm, params.partial, params.finetune.blr, adapt)
    LOG.info("partial: %g blocks, %s: %.3f", count, arm.name, sum(found.top1) / len(found.top1))
    return found


def _numbers(measured: dict[float, dict[str, Measured]]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for count, by_arm in measured.items():
        for name, one in by_arm.items():
            suffix = suffix_of(name)
            numbers |= one.numbers(f"accuracy_{_key(count)}{suffix}")
    return numbers


def _key(count: float) -> str:
    """0.5 -> 0_5_blocks: a full stop would part the name where DVC reads it."""
    return f"{count:g}_blocks".replace(".", "_")


def _comparisons(
    measured: dict[float, dict[str, Measured]], budget: str, images: int
) -> tuple[Compared, ...]:
    """Most blocks first: there the encoder could do most."""
    found: list[Compared] = []
    for count, by_arm in sorted(measured.items(), reverse=True):
        found += compared(f"{_in_words(count)}, {budget}", top1_of(by_arm), images, paired=True)
    return tuple(found)


def _in_words(count: float) -> str:
    if count == 0:
        return "Linear layer alone"
    if count == 0.5:
        return "Last MLP tuned"
    return f"Last {count:g} block{'s' if count != 1 else ''} tuned"


def _left_out(wanted: tuple[float, ...], depth: int) -> str | None:
    beyond = [f"{count:g}" for count in sorted(set(wanted)) if count > depth]
    if not beyond:
        return None
    return f"{', '.join(beyond)} blocks are left out: the encoder has {depth}"


def draw_by_blocks(path: Path, measured: dict[float, dict[str, Measured]], budget: str) -> None:
    """Draw accuracy against the number of blocks that learned, a line with each arm's name."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    counts = list(measured)
    places = range(len(counts))  # a step each: halves and whole blocks are all of interest
    for name, colour in colours_of(next(iter(measured.values()))).items():
        means: list[Any] = [sum(m[name].top1) / len(m[name].top1) for m in measured.values()]
        lows = [min(m[name].top1) for m in measured.values()]
        highs = [max(m[name].top1) for m in measured.values()]
        axes.plot(places, means, marker="o", markersize=4, color=colour)
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.annotate(
            words(name),
            (places[-1], means[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set_xticks(places, [f"{count:g}" for count in counts])
    axes.set_xlim(-0.3, len(counts) - 1 + 0.3)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("blocks that learn, counted from the last (0: the linear layer alone)")
    axes.set_ylabel("top-1 accuracy")
    axes.set_title(f"Partial fine-tuning, {budget}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    write_png(figure, path, dpi=144)
