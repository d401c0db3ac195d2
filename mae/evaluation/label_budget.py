"""Label budget: accuracy by share of the labels, with pretraining and without.

Every arm learns from the same labels, drawn anew for each seed: the same share of every class, at
least one of each, those of a smaller share among those of a larger. Nothing is chosen, for few
labels leave none to choose on: k-NN takes k = 10 and temperature .07, logistic regression C = 1 on
standardised features, whatever the share. So the curves show labels alone; the protocols `knn` and
`linear` tune theirs on all labels. Drawing all of them leaves nothing to chance but the learning,
so these two, which have none, run once on them.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_cache import features_of
from mae.evaluation.label_budget_picture import draw_label_budget
from mae.evaluation.label_curves import Curves, Run
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.learning import Setting, learning_arms, train_and_score
from mae.evaluation.logistic import fit_logistic
from mae.evaluation.neighbours import Bank, knn_votes
from mae.evaluation.opening import open_labelled
from mae.evaluation.outcome import Outcome
from mae.evaluation.scores import measure_scores
from mae.hashing import permutation
from mae.model.artifact import EncoderArtifact
from mae.params import LabelBudget, OptimParams, Params
from mae.training.devices import Place

LOG = logging.getLogger(__name__)

PROTOCOL = "label_budget"

_K, _TEMPERATURE = 10, 0.07
_C = 1.0


@dataclass(frozen=True)
class Draw:
    """rows int64 ascending of train whose labels are known, as the seed drew them."""

    share: float
    seed: int
    rows: Tensor


@dataclass(frozen=True)
class Budget:
    """What all runs have in common."""

    params: Params
    train: LabelledSplit
    test: LabelledSplit
    classes: tuple[str, ...]
    place: Place

    def draws(self, protocol: str) -> Iterator[Draw]:
        """Yield the draws of each share, the smallest first."""
        budget = self.params.evaluate.label_budget
        for share in sorted(set(budget.shares)):
            once = share == 1 and protocol != "finetune"
            for run in range(1 if once else budget.seeds):
                seed = self.params.seed + run
                yield Draw(share, seed, draw_share(self.train, share, seed))


def run(params: Params, shards: Path, pretrained: Path, place: Place, pictures: Path) -> Outcome:
    """Learn from every share by every protocol, and draw accuracy against labels in `pictures`.

    Frozen protocols use evaluate.finetune's feature, fine-tuning its recipe at the first of its
    rates. Raises DataError for an encoder that does not fit the data, for a class that train lacks
    and for a split without labels.
    """
    opened = open_labelled(shards, pretrained)
    if isinstance(opened, str):
        return Outcome(PROTOCOL, skipped=opened)
    info, artifact, train, test = opened
    budget = Budget(params, train, test, info.classes, place)
    protocols = list(dict.fromkeys(params.evaluate.label_budget.protocols))
    runs: list[Run] = []
    if frozen := [protocol for protocol in protocols if protocol != "finetune"]:
        runs += _frozen_runs(budget, artifact, frozen)
    if "finetune" in protocols:
        runs += _finetuned_runs(budget, artifact)
    curves = Curves.of(runs, len(test))
    verdict = curves.verdict()
    LOG.info("label_budget: %s", verdict)
    if place.leads:
        draw_label_budget(curves, pictures)
    return Outcome(
        PROTOCOL,
        numbers=curves.numbers(),
        comparisons=tuple(curves.comparisons()),
        detail={
            "verdict": verdict,
            **curves.to_dict(),
            "images": {split.name: len(split) for split in (train, test)},
        },
    )


def draw_share(train: LabelledSplit, share: float, seed: int) -> Tensor:
    """Return rows of train, int64 ascending: the share of every class, one image of each at least.

    Those of a smaller share are among those of a larger one of the same seed.
    """
    order = permutation(seed, "label budget", 0, len(train))
    drawn = []
    for label in train.labels.unique():
        of_class = order[train.labels[order] == label]
        drawn.append(of_class[: max(1, round(share * len(of_class)))])
    return torch.cat(drawn).sort().values


# --- frozen encoders ----------------------------------------------------------------------------


def _frozen_runs(
    budget: Budget, artifact: EncoderArtifact, protocols: Sequence[str]
) -> Iterator[Run]:
    params, place = budget.params, budget.place
    feature, labels = params.evaluate.finetune.feature, budget.train.labels
    for name, arm in frozen_arms(params, artifact, pixels=True).items():
        train, test = (
            features_of(arm, split, feature, params, place) for split in (budget.train, budget.test)
        )
        for protocol in protocols:
            for draw in budget.draws(protocol):
                started = time.monotonic()
                known = Bank(train[draw.rows], labels[draw.rows], len(budget.classes))
                scores = measure_scores(
                    _ANSWERS[protocol](known, test, place.device), budget.test.labels
                )
                yield Run(
                    *(protocol, name, draw.share, len(draw.rows), draw.seed, scores.top1),
                    seconds=time.monotonic() - started,
                )


def _knn(known: Bank, queries: Tensor, device: torch.device) -> Tensor:
    k = min(_K, len(known.labels))
    return knn_votes(known, queries, [k], _TEMPERATURE, device)[k].log()


def _logistic(known: Bank, queries: Tensor, device: torch.device) -> Tensor:
    return fit_logistic(known.vectors, known.labels, known.classes, _C, device).logits(queries)


_ANSWERS: dict[str, Callable[[Bank, Tensor, torch.device], Tensor]] = {
    "knn": _knn,
    "logistic": _logistic,
}


# --- fine-tuning ----------------------------------------------------------------------------------


def _finetuned_runs(budget: Budget, artifact: EncoderArtifact) -> Iterator[Run]:
    setting = Setting(budget.params, budget.train, budget.test, budget.classes, budget.place)
    for name, arm in learning_arms(budget.params, artifact).items():
        for draw in budget.draws("finetune"):
            optim = _optim(budget.params, len(draw.rows))
            positions = budget.train.positions[draw.rows]
            learned = train_and_score(setting, arm, positions, optim, draw.seed)
            yield Run(
                *("finetune", name, draw.share, learned.labels, draw.seed, learned.scores.top1),
                seconds=learned.seconds,
            )


def _optim(params: Params, labels: int) -> OptimParams:
    """Return the recipe that spends about label_budget.steps on so many labels, in whole epochs."""
    finetune = params.evaluate.finetune

    def of(epochs: int) -> OptimParams:
        whole = LabelBudget(labels_per_class=None, epochs=epochs, seeds=1)
        return finetune.optim(whole, finetune.blr[0])

    per_epoch = of(1).steps_per_epoch(labels)
    return of(max(1, round(params.evaluate.label_budget.steps / per_epoch)))
