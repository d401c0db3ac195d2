"""The MAE release's checkpoints, pretraining and fine-tuned, and timm's: in and out."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mae.errors import CheckpointError, ParamsError
from mae.files import read_json, write_json
from mae.model.artifact import load_autoencoder, load_encoder, save_artifact
from mae.model.autoencoder import build_autoencoder
from mae.model.weights.exporting import export_weights
from mae.model.weights.importing import IMAGENET_MEAN, IMAGENET_STD, import_weights
from mae.model.weights.shapes import Said
from mae.params import DecoderParams, MaskParams, ModelParams, TargetParams
from mae.pixels import PixelStatistics
from tests.model.weights.foreign import ReferenceMAE, distance, images_of, stir, timm_vit

IDS = torch.tensor([3, 14, 15])
HEADS = Said(heads=4, decoder_heads=2, target="normalized_pixels")


def told(channels: int) -> Said:
    return Said(mean=(0.5,) * channels, std=(0.25,) * channels).over(HEADS)


@pytest.mark.parametrize(
    ("image", "patch", "channels"), [((24, 24), (4, 4), 3), ((16, 24), (4, 6), 4)]
)
def test_pretraining_checkpoint(image: Any, patch: Any, channels: int, tmp_path: Path) -> None:
    theirs = ReferenceMAE(image, patch, channels)
    file = tmp_path / "checkpoint-799.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 799}, file)
    import_weights(file, tmp_path / "ours", told(channels))
    ours = load_autoencoder(tmp_path / "ours").autoencoder
    images = images_of(channels, *image)
    with torch.no_grad():
        outcome = ours(images, IDS, seed=0, epoch=0)
        expected = theirs(images, outcome.masking)[torch.arange(3)[:, None], outcome.masking.hidden]
        turned = expected.unflatten(2, (*patch, channels)).movedim(4, 2).flatten(2)
        assert distance(outcome.prediction, turned) < 1e-5
        loss = (outcome.prediction - outcome.target).square().mean()
        assert distance(loss, theirs.loss(images, outcome.masking)) < 1e-5

    export_weights(tmp_path / "ours", tmp_path / "again.safetensors", "reference")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.state_dict().items())
    import_weights(tmp_path / "again.safetensors", tmp_path / "back")
    for name in ("autoencoder.safetensors", "encoder.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("channels", [1, 13])
def test_ours_there_and_back(positions: Any, channels: int, tmp_path: Path) -> None:
    params = ModelParams(
        height=8,
        width=24,
        resize=1.25,
        patch=(4, 6),
        dim=24,
        depth=2,
        heads=3,
        mlp_ratio=2.5,
        positions=positions,
        decoder=DecoderParams(width=16, depth=1, heads=2, positions=positions),
        mask=MaskParams(kind="random", ratio=0.6),
        target=TargetParams(kind="pixels"),
    )
    autoencoder = stir(build_autoencoder(params, channels, 0))
    statistics = PixelStatistics((0.1,) * channels, (0.3,) * channels, 16)
    save_artifact(tmp_path / "ours", autoencoder, statistics, {"steps": 3})
    export_weights(tmp_path / "ours", tmp_path / "there.safetensors", "reference")
    import_weights(tmp_path / "there.safetensors", tmp_path / "back")
    for name in ("autoencoder.safetensors", "encoder.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    back = read_json(tmp_path / "back/encoder.json")
    ours = read_json(tmp_path / "ours/encoder.json")
    assert {**back, "training": 0} == {**ours, "training": 0}
    assert list(back["training"]["imported"]["sha256"]) == ["there.safetensors"]
    assert len(back["training"]["imported"]["sha256"]["there.safetensors"]) == 64


def test_a_checkpoint_of_the_release_brings_its_arguments(tmp_path: Path) -> None:
    theirs = ReferenceMAE((24, 24), (4, 4), 3)
    arguments = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.5, input_size=24)
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": theirs.state_dict(), "args": arguments}, file)
    import_weights(file, tmp_path / "ours", Said(heads=4, decoder_heads=2))
    artifact = load_autoencoder(tmp_path / "ours")
    assert artifact.autoencoder.params.target.kind == "pixels"
    assert artifact.autoencoder.params.mask.ratio == 0.5
    assert artifact.statistics == PixelStatistics(IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("image", "patch"), [((24, 24), (4, 4)), ((16, 24), (8, 4))])
def test_timm_encoder(learned: bool, image: Any, patch: Any, tmp_path: Path) -> None:
    theirs = timm_vit(img_size=image, patch_size=patch)
    if learned:
        stir(theirs)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    said = Said(heads=4, height=image[0] if learned else None, width=image[1] if learned else None)
    import_weights(tmp_path / "vit.safetensors", tmp_path / "ours", said, "timm")
    ours = load_encoder(tmp_path / "ours").encoder
    assert ours.architecture.positions == ("learned" if learned else "sincos")
    images = images_of(3, *image)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        features = ours(images)
    assert distance(features.cls, tokens[:, 0]) < 1e-5
    assert distance(features.mean, tokens[:, 1:].mean(1)) < 1e-5
    assert distance(features.patches.flatten(2).mT, tokens[:, 1:]) < 1e-5

    done = export_weights(tmp_path / "ours", tmp_path / "again.safetensors", "timm")
    loaded = eval(done.usage, {"timm": timm}).eval()
    with torch.no_grad():
        assert distance(loaded.forward_features(images), tokens) < 1e-5
    import_weights(tmp_path / "again.safetensors", tmp_path / "back")
    name = "encoder.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_fine_tuned_with_global_pooling(tmp_path: Path) -> None:
    """Normalised after the mean: the feature that the head was trained on is `mean`."""
    theirs = timm_vit(img_size=(24, 24), num_classes=7, global_pool="avg")
    torch.save({"model": theirs.state_dict()}, tmp_path / "finetuned.pth")
    import_weights(tmp_path / "finetuned.pth", tmp_path / "ours", Said(heads=4))
    assert read_json(tmp_path / "ours/encoder.json")["head"] == {"classes": 7, "feature": "mean"}
    images = images_of(3, 24, 24)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        features = load_encoder(tmp_path / "ours").encoder(images)
        assert distance(features.mean, expected) < 1e-5
    done = export_weights(tmp_path / "ours", tmp_path / "again.safetensors", "timm")
    loaded = eval(done.usage, {"timm": timm}).eval()
    with torch.no_grad():
        assert distance(loaded(images), theirs(images)) < 1e-5
    import_weights(tmp_path / "again.safetensors", tmp_path / "back")
    for name in ("encoder.safetensors", "head.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    with pytest.raises(CheckpointError, match="export to timm"):
        export_weights(tmp_path / "ours", tmp_path / "vit", "vit")


def test_queries_without_bias_become_zeros(tmp_path: Path) -> None:
    theirs = timm_vit(qkv_bias=False)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    found = import_weights(tmp_path / "vit.safetensors", tmp_path / "ours", Said(heads=4))
    assert any("no bias" in note for note in found.notes)
    images = images_of(3, 16, 24)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        features = load_encoder(tmp_path / "ours").encoder(images)
    assert distance(features.cls, tokens[:, 0]) < 1e-5


def test_timm_configuration_brings_the_statistics(tmp_path: Path) -> None:
    save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    about = {"input_size": [3, 16, 24], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    write_json(tmp_path / "config.json", {"architecture": "vit_x", "pretrained_cfg": about})
    import_weights(tmp_path, tmp_path / "ours", Said(heads=4))
    assert load_encoder(tmp_path / "ours").statistics.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("extra", ["reg_token", "blocks.0.ls1.gamma", "norm_pre.weight"])
def test_weights_with_no_place_here_are_named(extra: str, tmp_path: Path) -> None:
    state = timm_vit().state_dict()
    save_file(state | {extra: torch.zeros(3)}, tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=f"unknown {extra}"):
        import_weights(tmp_path / "vit.safetensors", tmp_path / "ours", Said(heads=4))
    del state["blocks.1.mlp.fc2.bias"]
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=r"missing blocks\.1\.mlp\.fc2\.bias"):
        import_weights(tmp_path / "vit.safetensors", tmp_path / "ours", Said(heads=4))
    assert not (tmp_path / "ours").exists()


def test_what_only_the_user_can_say_is_asked_for(tmp_path: Path) -> None:
    grey = ReferenceMAE((16, 16), (4, 4), 1)
    torch.save(grey.state_dict(), tmp_path / "mae.pth")
    for said, error, words in (
        (Said(), CheckpointError, "give --heads"),
        (Said(heads=4), CheckpointError, "give --decoder-heads"),
        (Said(heads=4, decoder_heads=2), ParamsError, "give --mean and --std"),
        (Said(mean=(0.5,)).over(HEADS), ParamsError, "both --mean and --std"),
        (Said(mean=(0.5,) * 3, std=(0.5,) * 3).over(HEADS), ParamsError, "takes 1 channels"),
        (Said(mean=(0.5,), std=(0.5,), heads=4, decoder_heads=2), ParamsError, "give --target"),
        (Said(height=20, width=20).over(told(1)), CheckpointError, "16 patches of 4 x 4"),
        (Said(height=17, width=16).over(told(1)), CheckpointError, "no multiple of the patch"),
    ):
        with pytest.raises(error, match=words):
            import_weights(tmp_path / "mae.pth", tmp_path / "ours", said)
        assert not (tmp_path / "ours").exists()
    learned = stir(timm_vit(img_size=(8, 24))).state_dict()
    save_file(learned, tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="give --height and --width"):
        import_weights(tmp_path / "vit.safetensors", tmp_path / "ours", Said(heads=4))


def test_the_encoder_alone(tmp_path: Path) -> None:
    theirs = ReferenceMAE((24, 24), (4, 4), 3)
    torch.save(theirs.state_dict(), tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match="timm's models have not"):
        import_weights(tmp_path / "mae.pth", tmp_path / "ours", HEADS, "timm")
    import_weights(tmp_path / "mae.pth", tmp_path / "ours", Said(heads=4), encoder_only=True)
    with pytest.raises(CheckpointError, match="an encoder alone"):
        load_autoencoder(tmp_path / "ours")
    import_weights(tmp_path / "mae.pth", tmp_path / "whole", HEADS)
    name = "encoder.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    export_weights(tmp_path / "whole", tmp_path / "e.safetensors", "reference", encoder_only=True)
    assert not any("decoder" in name for name in load_file(tmp_path / "e.safetensors"))
