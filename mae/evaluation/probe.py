"""Logistic regression on a frozen feature: what several protocols, the exam and the exported
classifier ask of an encoder."""

from typing import NamedTuple

from mae.evaluation.feature_cache import features_of
from mae.evaluation.features import FrozenArm
from mae.evaluation.labelled import LabelledSplit
from mae.evaluation.logistic import LinearModel, choose_logistic, fit_logistic
from mae.evaluation.minival import minival_rows
from mae.params import FrozenFeature, Params
from mae.training.devices import Place


class Probe(NamedTuple):
    """A linear model of a feature, and the inverse regularisation it was learned with."""

    model: LinearModel
    c: float


def learn_probe(
    arm: FrozenArm, train: LabelledSplit, feature: FrozenFeature, params: Params, place: Place
) -> Probe:
    """Learn from all of train, by that of evaluate.linear.logistic_c that does best on minival."""
    features, labels = features_of(arm, train, feature, params, place), train.labels
    classes = len(train.reader.info.classes)
    candidates = params.evaluate.linear.logistic_c
    c = candidates[0]
    if len(set(candidates)) > 1:
        fit, held = minival_rows(train, params.evaluate.minival, params.seed)
        known, unknown = (features[fit], labels[fit]), (features[held], labels[held])
        c, _ = choose_logistic(known, unknown, classes, candidates, place.device)
    return Probe(fit_logistic(features, labels, classes, c, place.device), c)
