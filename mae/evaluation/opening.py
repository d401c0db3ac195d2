"""How a protocol on labels begins: the encoder it measures, and the images it measures on."""

from pathlib import Path
from typing import NamedTuple

from mae.data.dataset import DatasetInfo, read_dataset_info
from mae.evaluation.features import check_encoder_fits
from mae.evaluation.labelled import LabelledSplit, train_and_test, why_not_classifiable
from mae.model.artifact import EncoderArtifact, load_encoder


class Opened(NamedTuple):
    info: DatasetInfo
    artifact: EncoderArtifact
    train: LabelledSplit
    test: LabelledSplit


def open_labelled(shards: Path, pretrained: Path) -> Opened | str:
    """Return what is measured, or a sentence on why nothing can be.

    Raises DataError for an encoder that does not fit the data, for a class that train lacks and
    for a split without labels.
    """
    info = read_dataset_info(shards)
    reason = why_not_classifiable(info)
    if reason is not None:
        return reason
    artifact = load_encoder(pretrained)
    check_encoder_fits(artifact, info)
    return Opened(info, artifact, *train_and_test(shards))
