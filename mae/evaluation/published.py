"""Published figures, and the one that belongs beside a result: that of the very same setting.

A figure of another architecture, schedule or recipe says nothing about whether a run went well, so
everything that a source states must agree. Imported weights match nothing: they do not say how
they were pretrained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose
from typing import Any

from mae.data.dataset import DatasetInfo
from mae.params import AugmentParams, FinetuneParams, LabelBudget, LinearProbeParams, Params

_IMAGES_MAY_DIFFER = 0.02  # duplicates and broken files that were left out


@dataclass(frozen=True)
class Data:
    """A dataset as it is published; height and width in pixels, as the encoder takes images."""

    classes: int
    channels: int
    images: int
    height: int
    width: int

    def fits(self, info: DatasetInfo, architecture: dict[str, Any]) -> bool:
        return (
            (len(info.classes), info.channels) == (self.classes, self.channels)
            and abs(info.splits.get("train", 0) - self.images) <= _IMAGES_MAY_DIFFER * self.images
            and (architecture["height"], architecture["width"]) == (self.height, self.width)
        )


@dataclass(frozen=True)
class Pretraining:
    """An MAE with 75 % of the patches hidden at random.

    decoder: (width, depth). crops: the random crops' share of the area. None: the source does not
    say.
    """

    patch: int
    dim: int
    depth: int
    heads: int | None
    epochs: int
    decoder: tuple[int, int] | None
    target: str | None
    crops: tuple[float, float] | None
    flip: bool | None
    mlp_ratio: float | None = 4.0

    def fits(self, encoder_info: dict[str, Any]) -> bool:
        model = encoder_info["autoencoder"]["params"]
        pretrain = encoder_info["training"]["params"]["pretrain"]
        encoder, decoder, mask = encoder_info["architecture"], model["decoder"], model["mask"]
        augment = pretrain["augment"]
        return (
            # First, since a convolutional encoder has no patches to compare.
            (model["method"], model["loss"]["kind"]) == ("mae", "mse")
            and list(encoder["patch"]) == [self.patch] * 2
            and (encoder["dim"], encoder["depth"]) == (self.dim, self.depth)
            and self.heads in (None, encoder["heads"])
            and self.mlp_ratio in (None, encoder["mlp_ratio"])
            and (model["loss"]["over"], decoder["mask_tokens"]) == ("hidden", "decoder")
            and (mask["kind"], mask["ratio"], mask["final_ratio"]) == ("random", 0.75, None)
            and pretrain["epochs"] == self.epochs
            and self.decoder in (None, (decoder["width"], decoder["depth"]))
            and self.target in (None, model["target"]["kind"])
            and self.crops in (None, tuple(augment["crop_area"]))
            and self.flip in (None, augment["flip"])
        )


@dataclass(frozen=True)
class Figure:
    """A published accuracy in per cent, give or take `within`. repeats: is it the same recipe?"""

    data: Data
    pretraining: Pretraining
    protocol: str
    accuracy: float
    within: float
    source: str
    repeats: Callable[[Params], bool]


def expected(
    protocol: str, encoder_info: dict[str, Any], info: DatasetInfo, params: Params
) -> dict[str, Any] | None:
    """Return the band {metric, low, high, source} published for this very setting, or None.

    metric: the number of the protocol's Outcome that the band is of; low, high: shares from 0 to 1.
    encoder_info: what encoder.json says of the pretrained encoder.
    """
    training = encoder_info["training"]
    # Of another dataset, or not of ours at all.
    if training.get("data_fingerprint") != info.fingerprint or "params" not in training:
        return None
    for figure in FIGURES:
        if (
            figure.protocol == protocol
            and figure.data.fits(info, encoder_info["architecture"])
            and figure.pretraining.fits(encoder_info)
            and figure.repeats(params)
        ):
            return {
                "metric": _METRIC[protocol],
                "low": round((figure.accuracy - figure.within) / 100, 4),
                "high": round((figure.accuracy + figure.within) / 100, 4),
                "source": figure.source,
            }
    return None


_METRIC = {"finetune": "accuracy_all", "linear_probe": "accuracy", "knn": "accuracy"}


# --- the recipes of the sources ---------------------------------------------------------------


def _whole_budget(finetune: FinetuneParams) -> LabelBudget | None:
    return next((one for one in finetune.budgets if one.labels_per_class is None), None)


def _tuned_as_mae(epochs: int, drop_path: float) -> Callable[[Params], bool]:
    """Fine-tuning of arXiv 2111.06377, table 9; layer decay .65 is the reference code's."""

    def repeats(params: Params) -> bool:
        tune = params.evaluate.finetune
        budget, augment = _whole_budget(tune), tune.augment
        return (
            budget is not None
            and (budget.epochs, tune.batch) == (epochs, 1024)
            and any(isclose(blr, one) for blr in tune.blr for one in (5e-4, 1e-3))
            and tune.layer_decay in (0.65, 0.75)
            and (tune.drop_path, tune.label_smoothing) == (drop_path, 0.1)
            and (tune.weight_decay, tune.freeze_blocks, tune.feature) == (0.05, None, "mean")
            and (augment.randaugment or "").startswith("rand-m9-mstd0.5")
            and (augment.mixup, augment.cutmix, augment.erasing) == (0.8, 1.0, 0.25)
            and augment.flip
        )

    return repeats


def _tuned_plainly(epochs: int | None, batch: int | None) -> Callable[[Params], bool]:
    """All labels, all of the encoder, no augmentation."""

    def repeats(params: Params) -> bool:
        tune = params.evaluate.finetune
        budget, augment = _whole_budget(tune), tune.augment
        return (
            budget is not None
            and epochs in (None, budget.epochs)
            and batch in (None, tune.batch)
            and tune.freeze_blocks is None
            and augment.randaugment is None
            and (augment.mixup, augment.cutmix, augment.erasing) == (0, 0, 0)
            and not _moves(augment)
        )

    return repeats


def _moves(augment: AugmentParams) -> bool:
    return augment.flip or augment.crop_area != (1, 1) or augment.crop_aspect != (1, 1)


def _probed_as_mae(params: Params) -> bool:
    """The linear probe of arXiv 2111.06377, appendix A.1."""
    probe: LinearProbeParams = params.evaluate.linear_probe
    return (
        (probe.epochs, probe.batch, probe.feature) == (90, 16384, "cls")
        and (probe.weight_decay, probe.warmup_epochs) == (0, 10)
        and any(isclose(blr, 0.1) for blr in probe.blr)
        and probe.augment is not None
        and probe.augment.crop_area == (0.08, 1)
        and probe.augment.flip
    )


def _any_recipe(params: Params) -> bool:
    return True


# --- the figures ------------------------------------------------------------------------------

_IMAGENET = Data(1000, 3, 1_281_167, 224, 224)
_CIFAR10 = Data(10, 3, 50_000, 32, 32)
_TINY_IMAGENET = Data(200, 3, 100_000, 64, 64)
_IMAGENETTE = Data(10, 3, 9_469, 224, 224)

_VITS = {"B": (16, 768, 12, 12), "L": (16, 1024, 24, 16), "H": (14, 1280, 32, 16)}
_MAE = "He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377"
_ICARUS = "github.com/IcarusWizard/MAE"


def _imagenet(
    size: str,
    epochs: int,
    protocol: str,
    accuracy: float,
    within: float,
    source: str,
    **others: Any,
) -> Figure:
    target = others.get("target", "normalized_pixels")
    pretraining = Pretraining(*_VITS[size], epochs, (512, 8), target, (0.2, 1.0), True)
    recipe: Callable[[Params], bool] = _probed_as_mae
    if protocol == "finetune":
        drop_path = {"B": 0.1, "L": 0.2, "H": 0.3}[size]
        recipe = _tuned_as_mae(100 if size == "B" else 50, drop_path)
    what = f"ViT-{size}, {epochs} epochs: {accuracy} %; {source}"
    return Figure(_IMAGENET, pretraining, protocol, accuracy, within, what, recipe)


def _cifar10(epochs: int, accuracy: float, source: str) -> Figure:
    pretraining = Pretraining(2, 192, 12, 3, epochs, (192, 4), "pixels", (1.0, 1.0), False)
    what = f"ViT-Ti/2, {epochs} epochs, no augmentation: {accuracy} %; {source}, a single run"
    return Figure(_CIFAR10, pretraining, "finetune", accuracy, 1.5, what, _tuned_plainly(100, 128))


_VIT_LITE = Pretraining(4, 256, 7, None, 400, (128, 2), "pixels", (1.0, 1.0), False, mlp_ratio=None)
_VIT_S = Pretraining(16, 384, 12, 6, 200, None, None, None, None)

FIGURES: tuple[Figure, ...] = (
    _imagenet("B", 1600, "finetune", 83.6, 0.3, f"{_MAE}, table 3"),
    _imagenet("L", 1600, "finetune", 85.9, 0.3, f"{_MAE}, table 3"),
    _imagenet("H", 1600, "finetune", 86.9, 0.3, f"{_MAE}, table 3"),
    _imagenet("L", 800, "finetune", 85.4, 0.3, f"{_MAE}, table 1d"),
    _imagenet("L", 800, "finetune", 84.9, 0.3, f"{_MAE}, table 1d", target="pixels"),
    _imagenet("B", 1600, "linear_probe", 67.6, 1.0, f"{_MAE} has 68.0, mmpretrain 67.1"),
    _imagenet("L", 1600, "linear_probe", 75.8, 0.7, _MAE),
    _imagenet("H", 1600, "linear_probe", 76.6, 0.7, _MAE),
    _imagenet("L", 800, "linear_probe", 73.9, 0.7, f"{_MAE}, table 1d"),
    _imagenet("L", 800, "linear_probe", 73.5, 0.7, f"{_MAE}, table 1d", target="pixels"),
    _imagenet("B", 300, "linear_probe", 60.8, 1.5, "mmpretrain, a single run"),
    _imagenet("B", 400, "linear_probe", 62.5, 1.5, "mmpretrain, a single run"),
    _imagenet("B", 800, "linear_probe", 65.1, 1.5, "mmpretrain, a single run"),
    _cifar10(300, 84.4, f"a fork of {_ICARUS}"),
    _cifar10(2000, 89.8, _ICARUS),
    Figure(
        *(_TINY_IMAGENET, _VIT_LITE, "finetune", 55.0, 1.5),
        "ViT-Lite/4, 400 epochs, no augmentation: 55.0 %; ReScience C 2023, a single run",
        _tuned_plainly(None, None),
    ),
    Figure(
        *(_TINY_IMAGENET, _VIT_LITE, "linear_probe", 30.0, 2.0),
        "ViT-Lite/4, 400 epochs, no augmentation: 28 to 32 %; ReScience C 2023",
        _any_recipe,
    ),
    Figure(
        *(_IMAGENETTE, _VIT_S, "linear_probe", 84.1, 3.0),
        "ViT-S/16, 200 epochs: 84.1 %, of a probe learned beside the encoder; stable-pretraining",
        _any_recipe,
    ),
    Figure(
        *(_IMAGENETTE, _VIT_S, "knn", 72.1, 3.0),
        "ViT-S/16, 200 epochs: 72.1 %; stable-pretraining, a single run",
        _any_recipe,
    ),
)
