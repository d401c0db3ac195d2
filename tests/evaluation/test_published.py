import copy
from pathlib import Path
from typing import Any

import pytest

from mae.data.dataset import DatasetInfo
from mae.evaluation.published import FIGURES, expected
from mae.params import Params, parse_params, read_params
from mae.pixels import PixelStatistics

ROOT = Path(__file__).parents[2]

CIFAR = {"classes": 10, "train": 50_000}
IMAGENET = {"classes": 1000, "train": 1_281_167}


def info_of(classes: int, train: int, channels: int = 3) -> DatasetInfo:
    return DatasetInfo(
        folder=Path("shards"),
        dataset="images",
        layout="",
        classes=tuple(map(str, range(classes))),
        categories=(),
        statistics=PixelStatistics((0.5,) * channels, (0.25,) * channels, 8),
        fingerprint="the data",
        recipe="",
        code="",
        splits={"train": train, "test": 100},
        instances={},
        seen=train,
        accepted=train,
        quarantined=0,
        set_aside=0,
        limits={},
    )


def encoder_info(params: Params, channels: int = 3) -> dict[str, Any]:
    model = params.model_dump(mode="json", by_alias=True)["model"]
    patch = params.model.patch_size
    return {
        "architecture": {**model, "patch": list(patch), "channels": channels},
        "autoencoder": {"params": model},
        "training": {
            "data_fingerprint": "the data",
            "params": {"pretrain": params.model_dump(mode="json")["pretrain"]},
        },
    }


def changed(params: Params, path: str, value: Any) -> Params:
    """Return the parameters with one key, a dotted path, set."""
    content = copy.deepcopy(params.model_dump(mode="json", by_alias=True))
    *outer, key = path.split(".")
    section = content
    for name in outer:
        section = section[name]
    assert section[key] != value
    section[key] = value
    return parse_params(content)


@pytest.fixture(scope="module")
def cifar() -> Params:
    """The row "ViT-Ti/2, 300 epochs, no augmentation"."""
    content = read_params(ROOT / "profiles/cifar10.yaml").model_dump(mode="json", by_alias=True)
    still = {"crop_area": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "flip": False}
    content["pretrain"] |= {"epochs": 300, "augment": still}
    content["evaluate"]["finetune"] |= {"batch": 128}
    content["evaluate"]["finetune"]["budgets"] = [
        {"labels_per_class": 10, "epochs": 30, "seeds": 1},
        {"labels_per_class": None, "epochs": 100, "seeds": 1},
    ]
    content["evaluate"]["finetune"]["augment"] |= still | {"mixup": 0.0, "cutmix": 0.0}
    return parse_params(content)


@pytest.fixture(scope="module")
def imagenet() -> Params:
    """ViT-B, 1600 epochs, the recipes of the paper."""
    content = read_params(ROOT / "profiles/imagenet-vit-b16.yaml").model_dump(
        mode="json", by_alias=True
    )
    content["pretrain"] |= {"epochs": 1600}
    return parse_params(content)


def test_the_row_of_cifar10(cifar: Params) -> None:
    band = expected("finetune", encoder_info(cifar), info_of(**CIFAR), cifar)
    assert band is not None
    assert band["low"] < 0.844 < band["high"] and band["high"] - band["low"] == pytest.approx(0.03)
    assert band["metric"] == "accuracy_all" and "single run" in band["source"]
    longer = changed(cifar, "pretrain.epochs", 2000)
    other = expected("finetune", encoder_info(longer), info_of(**CIFAR), longer)
    assert other is not None and other["low"] < 0.898 < other["high"]


def test_the_rows_of_imagenet(imagenet: Params) -> None:
    encoder, info = encoder_info(imagenet), info_of(**IMAGENET)
    tuned = expected("finetune", encoder, info, imagenet)
    assert tuned is not None and tuned["low"] < 0.836 < tuned["high"]
    probed = expected("linear_probe", encoder, info, imagenet)
    assert probed is not None and probed["low"] < 0.68 < probed["high"]
    assert probed["metric"] == "accuracy" and "2111.06377" in probed["source"]
    shorter = changed(imagenet, "pretrain.epochs", 800)
    probed = expected("linear_probe", encoder_info(shorter), info, shorter)
    assert probed is not None and probed["low"] < 0.651 < probed["high"]
    assert expected("finetune", encoder_info(shorter), info, shorter) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pretrain.epochs", 299),
        ("pretrain.augment.flip", True),
        ("pretrain.augment.crop_area", [0.6, 1.0]),
        ("model.mask.ratio", 0.5),
        ("model.mask.kind", "block"),
        ("model.target.kind", "normalized_pixels"),
        ("model.patch", 4),
        ("model.decoder.depth", 1),
        ("model.decoder.width", 96),
        ("model.loss.over", "all"),
        ("model.method", "simmim"),
        ("model.mlp_ratio", 2.0),
        ("evaluate.finetune.augment.flip", True),
        ("evaluate.finetune.augment.mixup", 0.8),
        ("evaluate.finetune.augment.randaugment", "rand-m9-mstd0.5-inc1"),
        ("evaluate.finetune.batch", 256),
        ("evaluate.finetune.freeze_blocks", 2),
    ],
)
def test_near_misses_of_cifar10_do_not_match(cifar: Params, path: str, value: Any) -> None:
    params = changed(cifar, path, value)
    assert expected("finetune", encoder_info(params), info_of(**CIFAR), params) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evaluate.linear_probe.augment", None),
        ("evaluate.linear_probe.blr", [1.0, 5.0]),
        ("evaluate.linear_probe.batch", 1024),
        ("evaluate.linear_probe.feature", "mean"),
        ("pretrain.epochs", 1000),
        ("model.target.kind", "pixels"),
    ],
)
def test_near_misses_of_a_linear_probe_do_not_match(
    imagenet: Params, path: str, value: Any
) -> None:
    params = changed(imagenet, path, value)
    assert expected("linear_probe", encoder_info(params), info_of(**IMAGENET), params) is None


@pytest.mark.parametrize(
    "data",
    [
        {"classes": 100, "train": 50_000},
        {"classes": 10, "train": 45_000},
        {"classes": 10, "train": 50_000, "channels": 1},
    ],
)
def test_other_data_do_not_match(cifar: Params, data: dict[str, int]) -> None:
    assert expected("finetune", encoder_info(cifar), info_of(**data), cifar) is None


def test_few_left_out_images_still_match(cifar: Params) -> None:
    assert expected("finetune", encoder_info(cifar), info_of(10, 49_500), cifar) is not None


def test_an_encoder_of_other_data_or_of_others_does_not_match(cifar: Params) -> None:
    encoder = encoder_info(cifar)
    encoder["training"]["data_fingerprint"] = "other data"
    assert expected("finetune", encoder, info_of(**CIFAR), cifar) is None
    imported = encoder_info(cifar)
    imported["training"] = {"imported": {"from": "vit.pth"}, "data_fingerprint": "imported 12"}
    assert expected("finetune", imported, info_of(**CIFAR), cifar) is None


def test_other_protocols_have_no_figure(cifar: Params) -> None:
    for protocol in ("linear_probe", "knn", "few_shot"):
        assert expected(protocol, encoder_info(cifar), info_of(**CIFAR), cifar) is None


def test_the_default_digits_have_no_figure() -> None:
    params = read_params(ROOT / "params.yaml")
    encoder, info = encoder_info(params, channels=1), info_of(10, 4908, channels=1)
    assert expected("finetune", encoder, info, params) is None


def test_every_figure_is_a_share_with_a_source_and_the_sharpest_are_imagenets() -> None:
    for figure in FIGURES:
        assert 0 < figure.accuracy < 100 and figure.within >= 0.3 and figure.source
        if "single run" in figure.source:
            assert figure.within >= 1.5


def test_a_convolutional_encoder_matches_nothing(cifar: Params) -> None:
    encoder = encoder_info(changed(cifar, "model.method", "convolutional"))
    encoder["architecture"] = {
        "kind": "convolutional",
        "height": 32,
        "width": 32,
        "channels": 3,
        "dim": 192,
    }
    assert expected("finetune", encoder, info_of(**CIFAR), cifar) is None
