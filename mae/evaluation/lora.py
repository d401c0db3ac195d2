"""Low-rank adapters: the encoder stays as it is, and a few numbers beside it learn.

The rest of the recipe is fine-tuning's, but for the layer decay: adapters start at zero wherever
they are, so that there is nothing in the early ones to be careful with. A random encoder with
adapters of its own shows what they learn without pretraining.
"""

from dataclasses import replace
from pathlib import Path

from mae.evaluation.budgets import budget_words, check_budget, measure, top1_of
from mae.evaluation.learning import Setting, frozen_start_arms, why_no_blocks
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Outcome, compared
from mae.model.freezing import learn_only
from mae.model.heads import Classifier
from mae.model.lora import add_adapters
from mae.params import Params
from mae.training.devices import Place

PROTOCOL = "lora"


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Learn adapters and a linear layer on the labels of each seed.

    Raises DataError for an encoder that does not fit the data or a budget that cannot be met,
    ParamsError for a rank above the encoder's width.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    reason = why_no_blocks(artifact)
    if reason is not None:
        return Outcome(PROTOCOL, skipped=reason)
    setting = Setting(params, train, test, info.classes, place)
    lora = params.evaluate.lora
    check_budget(setting, lora, lora.blr)

    def adapt(classifier: Classifier) -> None:
        adapters = add_adapters(classifier.encoder, lora.rank, lora.alpha, params.seed)
        learn_only(classifier, [*adapters, *classifier.head.parameters()])

    measured = {
        name: measure(setting, replace(arm, layer_decay=1.0), lora, lora.blr, adapt)
        for name, arm in frozen_start_arms(params, artifact).items()
    }
    numbers: dict[str, float] = {"parameters": measured["pretrained"].runs[0].parameters}
    for name, one in measured.items():
        numbers |= one.numbers("accuracy" if name == "pretrained" else f"accuracy_{name}")
    task = f"Low-rank adapters, {budget_words(lora)}"
    optim = params.evaluate.finetune.optim(lora, measured["pretrained"].blr)
    return Outcome(
        PROTOCOL,
        numbers,
        compared(task, top1_of(measured), len(setting.test), paired=True),
        detail={
            "images": {split.name: len(split) for split in (setting.train, setting.test)},
            "recipe": optim.describe(measured["pretrained"].runs[0].labels),
            "encoder_parameters": sum(p.numel() for p in artifact.encoder.parameters()),
            "arms": {name: one.to_dict(info.classes) for name, one in measured.items()},
        },
    )
