"""The encoder with a layer that names classes: logistic regression, or fine-tuned as a whole."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mae.errors import DivergedError
from mae.evaluation.arms import frozen_arm
from mae.evaluation.feature_cache import features_of
from mae.evaluation.learning import (
    Setting,
    learning_arm,
    make_task,
    predict,
    train_and_score,
    train_loader,
)
from mae.evaluation.logistic import LinearModel
from mae.evaluation.minival import split_minival
from mae.evaluation.opening import Opened, open_labelled
from mae.evaluation.probe import learn_probe
from mae.evaluation.scores import measure_scores
from mae.model.freezing import freeze_first
from mae.model.heads import Classifier
from mae.params import Feature, LabelBudget, Params
from mae.training.devices import Place, resolve_device
from mae.training.trainer import Trainer, adamw

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnedClassifier:
    """A classifier on the CPU, names of its classes in order, its accuracy on test, and how it was
    learned."""

    classifier: Classifier
    classes: tuple[str, ...]
    accuracy: float
    how: dict[str, Any]


def learn_classifier(pretrained: Path, shards: Path, params: Params) -> LearnedClassifier | str:
    """Learn what params.export.classifier asks for from all labels of train.

    Return why there is none where the data have no labels to learn. Raises DataError as the
    protocols do, DivergedError where fine-tuning leads nowhere.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return opened
    place = Place(resolve_device(params.runtime.device))
    learn = {"logistic": _logistic, "finetuned": _finetuned}[str(params.export.classifier)]
    learned = learn(opened, params, place)
    learned.classifier.cpu().eval()
    LOG.info("classifier (%s): %.3f of test right", params.export.classifier, learned.accuracy)
    return learned


# --- logistic regression --------------------------------------------------------------------------


def _logistic(opened: Opened, params: Params, place: Place) -> LearnedClassifier:
    """Logistic regression on a frozen feature, its strength chosen on minival as `linear` does."""
    info, artifact, train, test = opened
    feature, arm = params.export.feature, frozen_arm("pretrained", artifact)
    probe = learn_probe(arm, train, feature, params, place)
    asked = features_of(arm, test, feature, params, place)
    return LearnedClassifier(
        with_linear_head(artifact.encoder, probe.model, feature),
        info.classes,
        measure_scores(probe.model.logits(asked), test.labels).top1,
        {"kind": "logistic", "feature": feature, "c": probe.c},
    )


@torch.no_grad()
def with_linear_head(encoder: Any, model: LinearModel, feature: Feature) -> Classifier:
    """Return an encoder with a linear model of its feature as one layer, standardisation in it."""
    classifier = Classifier(encoder, len(model.bias), feature, init_std=0.02, seed=0)
    weight = model.weight / model.scale
    classifier.head.weight.copy_(weight)
    classifier.head.bias.copy_(model.bias - weight @ model.mean)
    return classifier


# --- fine-tuning ----------------------------------------------------------------------------------


def _finetuned(opened: Opened, params: Params, place: Place) -> LearnedClassifier:
    """Fine-tune on all labels by the recipe of evaluate.finetune, its rate chosen on minival."""
    info, artifact, train, test = opened
    setting = Setting(params, train, test, info.classes, place)
    arm = learning_arm(params, "pretrained", artifact)
    recipe, budget = params.evaluate.finetune, _all_labels(params)
    blocks = recipe.freeze_blocks

    def adapt(classifier: Classifier) -> None:
        if blocks is not None:
            freeze_first(classifier.encoder, blocks)

    def accuracy_at(blr: float) -> float:
        fit, held = split_minival(train, params.evaluate.minival, params.seed)
        optim = recipe.optim(budget, blr)
        try:
            run = train_and_score(
                setting, arm, fit.positions, optim, params.seed, adapt=adapt, test=held
            )
        except DivergedError:
            return -1.0
        return run.scores.top1

    blr = recipe.blr[0]
    if len(set(recipe.blr)) > 1:
        blr = max(sorted(set(recipe.blr)), key=accuracy_at)
    optim = recipe.optim(budget, blr)
    task = make_task(setting, arm, params.seed, adapt)
    trainer = Trainer(
        task,
        train_loader(setting, task.classifier.encoder, train.positions, optim.batch, params.seed),
        optim,
        seed=params.seed,
        place=place,
        runtime=params.runtime,
        make_optimizer=adamw(),
        title="classifier",
    )
    trainer.run()
    logits = predict(task, test, arm.resize, setting, trainer.precision)
    task.classifier.encoder.set_drop_path(0.0)
    return LearnedClassifier(
        task.classifier,
        info.classes,
        measure_scores(logits, test.labels).top1,
        {"kind": "finetuned", "feature": recipe.feature, "blr": blr, "epochs": optim.epochs},
    )


def _all_labels(params: Params) -> LabelBudget:
    """Return the budget of all labels, or the largest there is with all labels in its place."""
    budgets = params.evaluate.finetune.budgets
    largest = max(budgets, key=lambda one: one.labels_per_class or float("inf"))
    return largest.model_copy(update={"labels_per_class": None})
