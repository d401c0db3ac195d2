"""End-to-end fine-tuning at several label budgets, beside the same from scratch.

See mae.evaluation.learning for the recipe and mae.evaluation.budgets for how a rate is chosen.
"""

import logging
from pathlib import Path
from typing import Any

from mae.errors import ParamsError
from mae.evaluation.budgets import (
    Measured,
    budget_name,
    budget_words,
    check_budget,
    described_over_seeds,
    measure,
    top1_of,
)
from mae.evaluation.learning import Adapt, Setting, learning_arms
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Compared, Outcome, compared, suffix_of
from mae.evaluation.published import expected
from mae.model.freezing import freeze_first
from mae.params import LabelBudget, Params
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

PROTOCOL = "finetune"


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Fine-tune at every label budget for every seed: pretrained, from scratch, and baselines.

    A seed decides the labels (the same for all arms), the initial head, the order and the crops.
    Raises DataError for an encoder that does not fit the data, for a class with fewer labels than
    a budget asks for, and for a split without labels; ParamsError where all blocks are frozen.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    setting = Setting(params, train, test, info.classes, place)
    arms = learning_arms(params, artifact)
    finetune = params.evaluate.finetune
    _check_something_learns(finetune.freeze_blocks, len(artifact.encoder.blocks))
    for budget in finetune.budgets:
        check_budget(setting, budget, finetune.blr)
    numbers: dict[str, float] = {}
    comparisons: list[Compared] = []
    detail: dict[str, Any] = {
        "images": {split.name: len(split) for split in (setting.train, setting.test)}
    }
    for budget in finetune.budgets:
        measured = {
            name: measure(setting, arm, budget, finetune.blr, _adapt(params, name))
            for name, arm in arms.items()
        }
        name = budget_name(budget)
        numbers |= _numbers(name, measured)
        task = f"Fine-tuning, {budget_words(budget)}"
        comparisons += compared(
            task, top1_of(measured), len(setting.test), paired=True, deciding=["scratch"]
        )
        detail[name] = _described(params, budget, measured, info.classes)
        LOG.info(
            "finetune: %s: %.3f pretrained, %.3f from scratch",
            name,
            numbers[f"accuracy_{name}"],
            numbers[f"accuracy_{name}_scratch"],
        )
    return Outcome(
        PROTOCOL,
        numbers,
        tuple(comparisons),
        detail,
        expected(PROTOCOL, artifact.info, info, params),
    )


def _check_something_learns(freeze_blocks: int | None, depth: int) -> None:
    if freeze_blocks is not None and freeze_blocks >= depth:
        raise ParamsError(
            f"evaluate.finetune.freeze_blocks {freeze_blocks} leaves none of the encoder's {depth} "
            "blocks to fine-tune: choose fewer, or see `partial` with 0 blocks and `linear_probe`"
        )


def _adapt(params: Params, arm: str) -> Adapt | None:
    """Return what freezes the first blocks; from scratch there is nothing to keep: all learn."""
    blocks = params.evaluate.finetune.freeze_blocks
    if blocks is None or arm == "scratch":
        return None
    return lambda classifier: freeze_first(classifier.encoder, blocks)


def _numbers(name: str, arms: dict[str, Measured]) -> dict[str, float]:
    """Return mean and deviation over the seeds (one has none), and the gain, pair by pair."""
    numbers: dict[str, float] = {}
    for arm, measured in arms.items():
        suffix = suffix_of(arm)
        numbers |= described_over_seeds(f"accuracy_{name}{suffix}", measured.top1)
    pairs = zip(arms["pretrained"].top1, arms["scratch"].top1, strict=True)
    return numbers | described_over_seeds(f"gain_{name}", [warm - cold for warm, cold in pairs])


def _described(
    params: Params, budget: LabelBudget, arms: dict[str, Measured], classes: tuple[str, ...]
) -> dict[str, Any]:
    optim = params.evaluate.finetune.optim(budget, arms["pretrained"].blr)
    return {
        "recipe": optim.describe(arms["pretrained"].runs[0].labels),
        "arms": {name: measured.to_dict(classes) for name, measured in arms.items()},
    }
