"""The masked autoencoder's rivals, made of the same parts, for comparison on equal terms.

| method | input | what is learned |
|---|---|---|
| mae | the visible patches | the hidden patches |
| autoencoder | all patches | all patches |
| denoising | all patches, with noise | all patches, without |
| simmim | all places, mask tokens at the hidden | the hidden patches, by a linear layer, in L1 |
| convolutional | all pixels, through convolutions | all pixels |
| supervised | all patches | the label |

A method is above all a choice of parameters, which `resolve_method` makes; the last two are
networks of their own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae.errors import DataError
from mae.hashing import stream
from mae.model.autoencoder import Autoencoder, build_autoencoder
from mae.model.convolutional import (
    KIND,
    ConvolutionalArchitecture,
    ConvolutionalAutoencoder,
    ConvolutionalEncoder,
    build_convolutional,
)
from mae.model.encoder import Architecture, Encoder
from mae.model.heads import Classifier
from mae.params import ModelParams

_HEAD_STD = 0.02


class Supervised(nn.Module):
    """The same encoder from scratch with a linear layer on its mean feature: images -> logits."""

    def __init__(self, params: ModelParams, channels: int, classes: int, seed: int) -> None:
        super().__init__()
        self.params = params
        encoder = Encoder(Architecture.from_params(params, channels), params.drop_path)
        self.classifier = Classifier(encoder, classes, "mean", init_std=_HEAD_STD, seed=seed)

    @property
    def encoder(self) -> Encoder:
        return self.classifier.encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy, a float32 scalar; an image without a label is a 0 in it.

        labels int64 (N,), -1 for none.
        """
        losses = F.cross_entropy(self(images).float(), labels, ignore_index=-1, reduction="sum")
        return losses / len(labels)

    def to_dict(self) -> dict[str, Any]:
        """Return what `model_from_dict` needs to build the same modules."""
        return {
            "encoder": self.encoder.architecture.to_dict(),
            "params": self.params.model_dump(mode="json"),
            "classes": self.classifier.head.out_features,
            "resize": self.params.resize,
        }


PretrainingModel = Autoencoder | ConvolutionalAutoencoder | Supervised


def resolve_method(params: ModelParams) -> ModelParams:
    """Return the parameters as the method wants them; those of a resolved one stay as they are."""
    mask = params.mask.model_copy(update={"ratio": 0.0, "final_ratio": None})
    on_all = params.loss.model_copy(update={"over": "all"})
    on_hidden_l1 = params.loss.model_copy(update={"kind": "l1", "over": "hidden"})
    pixels = params.target.model_copy(update={"kind": "pixels"})
    linear_head = params.decoder.model_copy(update={"depth": 0, "mask_tokens": "encoder"})
    changes: dict[str, dict[str, Any]] = {
        "mae": {},
        "autoencoder": {"mask": mask, "loss": on_all},
        "denoising": {"mask": mask, "loss": on_all},
        "simmim": {"decoder": linear_head, "target": pixels, "loss": on_hidden_l1},
        "convolutional": {"mask": mask, "target": pixels, "loss": on_all},
        "supervised": {"mask": mask},
    }
    return params.model_copy(update=changes[params.method])


def build_model(
    params: ModelParams,
    channels: int,
    classes: int,
    seed: int,
    fitted: dict[str, Tensor] | None = None,
) -> PretrainingModel:
    """Return what the method trains; its initial weights are a function of the seed.

    fitted: what `fit_target` returned. Raises DataError for the supervised method on data of
    fewer than two classes, ParamsError for sides that the convolutional one cannot halve.
    """
    params = resolve_method(params)
    if params.method == "convolutional":
        return build_convolutional(params, channels, seed)
    if params.method != "supervised":
        return build_autoencoder(params, channels, seed, fitted)
    if classes < 2:
        raise DataError(
            f"method supervised learns labels, and the data has {classes} classes: give the images "
            "labels, or choose another method"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init") >> 1)
        return Supervised(params, channels, classes, seed)


def model_from_dict(content: dict[str, Any]) -> PretrainingModel:
    """Return the untrained model that `to_dict` of any of the three described."""
    params = content.get("params", {})
    if params.get("method") == "convolutional":
        return ConvolutionalAutoencoder.from_dict(content)
    if params.get("method") == "supervised":
        channels = content["encoder"]["channels"]
        return Supervised(ModelParams(**params), channels, content["classes"], seed=0)
    return Autoencoder.from_dict(content)


def encoder_from_dict(content: dict[str, Any]) -> Encoder | ConvolutionalEncoder:
    """Return the untrained encoder that `to_dict` of its architecture described."""
    if content.get("kind") == KIND:
        return ConvolutionalEncoder(ConvolutionalArchitecture.from_dict(content))
    return Encoder(Architecture.from_dict(content))
