"""HuggingFace's ViTMAE and ViT: the same numbers from the same weights, in and out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae.errors import CheckpointError
from mae.files import read_json, write_json
from mae.model.artifact import load_autoencoder, load_encoder
from mae.model.weights.exporting import export_weights
from mae.model.weights.importing import import_weights
from mae.model.weights.shapes import Said
from mae.pixels import PixelStatistics
from tests.model.weights.foreign import (
    distance,
    hf_mae,
    images_of,
    noise_for,
    stir,
)

transformers = pytest.importorskip("transformers")
GREY = Said(mean=(0.5,), std=(0.25,))
IDS = torch.tensor([3, 14, 15])

CONFIGS = [
    {},
    {"num_channels": 1, "image_size": 32, "patch_size": 8, "norm_pix_loss": False},
    {"num_channels": 4, "hidden_size": 48, "num_attention_heads": 3, "mask_ratio": 0.6},
]


def said_for(config: Any) -> Said:
    return Said(mean=(0.5,) * config.num_channels, std=(0.25,) * config.num_channels)


@pytest.mark.parametrize("changes", CONFIGS)
def test_loss_prediction_and_features_are_theirs(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_mae(tmp_path / "theirs", **changes)
    config = theirs.config
    import_weights(tmp_path / "theirs", tmp_path / "ours", said_for(config))
    ours = load_autoencoder(tmp_path / "ours").autoencoder
    images = images_of(config.num_channels, config.image_size, config.image_size)
    with torch.no_grad():
        outcome = ours(images, IDS, seed=0, epoch=0)
        expected = theirs(images, noise=noise_for(outcome.masking))
        assert torch.equal(outcome.masking.as_mask(), expected.mask.bool())
        everyone = torch.arange(len(images))[:, None]
        at_hidden = expected.logits[everyone, outcome.masking.hidden]
        patch, channels = config.patch_size, config.num_channels
        turned = at_hidden.unflatten(2, (patch, patch, channels)).movedim(4, 2).flatten(2)
        assert distance(outcome.prediction, turned) < 1e-5
        loss = (outcome.prediction - outcome.target).square().mean()
        assert distance(loss, expected.loss) < 1e-5
        theirs.config.mask_ratio = 0.0
        patches = (config.image_size // patch) ** 2
        in_order = torch.arange(patches, dtype=torch.float32).expand(len(images), -1)
        tokens = theirs.vit(images, noise=in_order).last_hidden_state
        features = ours.encoder(images)
    assert distance(features.cls, tokens[:, 0]) < 1e-5
    assert distance(features.mean, tokens[:, 1:].mean(1)) < 1e-5
    assert distance(features.patches.flatten(2).mT, tokens[:, 1:]) < 1e-5


@pytest.mark.parametrize("changes", CONFIGS)
def test_there_and_back_changes_no_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_mae(tmp_path / "theirs", **changes)
    import_weights(tmp_path / "theirs", tmp_path / "ours", said_for(theirs.config))
    export_weights(tmp_path / "ours", tmp_path / "again", "vit_mae")
    loaded, report = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, value in theirs.state_dict().items():
        if "pos" not in name:
            assert torch.equal(loaded.state_dict()[name], value), name
    for name in (
        "hidden_size",
        "mask_ratio",
        "norm_pix_loss",
        "image_size",
        "num_channels",
        "decoder_num_attention_heads",
        "layer_norm_eps",
    ):
        assert getattr(loaded.config, name) == getattr(theirs.config, name), name
    import_weights(tmp_path / "again", tmp_path / "back")
    for name in ("autoencoder.safetensors", "encoder.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    first, last = (
        read_json(tmp_path / "ours/encoder.json"),
        read_json(tmp_path / "back/encoder.json"),
    )
    del first["training"], last["training"]
    assert first == last


def test_every_spelling_of_the_names_is_read(tmp_path: Path) -> None:
    theirs = hf_mae(tmp_path / "disk")
    first = import_weights(tmp_path / "disk", tmp_path / "ours").converted
    for spelling in ("memory", "classic"):
        weights = (
            {name: value.contiguous() for name, value in theirs.state_dict().items()}
            if spelling == "memory"
            else {
                name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): value
                for name, value in load_file(tmp_path / "disk/model.safetensors").items()
            }
        )
        save_file(weights, tmp_path / "disk/model.safetensors")
        again = import_weights(tmp_path / "disk", tmp_path / "ours").converted
        assert all(torch.equal(again.decoder[name], value) for name, value in first.decoder.items())
        assert all(torch.equal(again.encoder[name], value) for name, value in first.encoder.items())


def vit_config(**changes: Any) -> Any:
    values = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": [16, 24],
        "patch_size": [4, 6],
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
    }
    return transformers.ViTConfig(**(values | changes), attn_implementation="eager")


@pytest.mark.parametrize(("eps", "tolerance"), [(1e-6, 1e-5), (1e-12, 1e-4)])
def test_a_vit_with_learned_positions_on_any_grid(
    eps: float, tolerance: float, tmp_path: Path
) -> None:
    theirs = stir(transformers.ViTModel(vit_config(layer_norm_eps=eps)))
    theirs.save_pretrained(tmp_path / "theirs")
    found = import_weights(tmp_path / "theirs", tmp_path / "ours", encoder_only=True)
    notes = " ".join(found.notes)
    assert "pooler.dense.weight left out" in notes
    assert ("epsilon of the normalisations 1e-12 there" in notes) == (eps == 1e-12)
    artifact = load_encoder(tmp_path / "ours")
    assert artifact.encoder.architecture.positions == "learned"
    images = images_of(3, 16, 24)
    with torch.no_grad():
        tokens = theirs(images).last_hidden_state
        features = artifact.encoder(images)
    assert distance(features.cls, tokens[:, 0]) < tolerance
    assert distance(features.patches.flatten(2).mT, tokens[:, 1:]) < tolerance

    export_weights(tmp_path / "ours", tmp_path / "again", "vit")
    loaded, report = transformers.ViTModel.from_pretrained(
        tmp_path / "again", add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert distance(loaded(images).last_hidden_state, tokens) < tolerance
    import_weights(tmp_path / "again", tmp_path / "back")
    name = "encoder.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_a_classifier_keeps_its_head(tmp_path: Path) -> None:
    theirs = stir(transformers.ViTForImageClassification(vit_config(num_labels=5)))
    theirs.save_pretrained(tmp_path / "theirs")
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert read_json(tmp_path / "ours/encoder.json")["head"] == {"classes": 5, "feature": "cls"}
    export_weights(tmp_path / "ours", tmp_path / "again", "vit")
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / "again")
    images = images_of(3, 16, 24)
    with torch.no_grad():
        assert distance(loaded(images).logits, theirs(images).logits) < 1e-5


def test_statistics_come_from_the_processor(tmp_path: Path) -> None:
    hf_mae(tmp_path / "theirs", num_channels=1)
    write_json(
        tmp_path / "theirs/preprocessor_config.json", {"image_mean": [0.4], "image_std": [0.3]}
    )
    import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert load_encoder(tmp_path / "ours").statistics == PixelStatistics((0.4,), (0.3,))
    import_weights(tmp_path / "theirs", tmp_path / "ours", GREY)
    assert load_encoder(tmp_path / "ours").statistics == PixelStatistics((0.5,), (0.25,))


def test_a_configuration_for_another_function_is_refused(tmp_path: Path) -> None:
    hf_mae(tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    config = read_json(path)
    for changes, words in (
        ({"hidden_act": "relu"}, "activation relu"),
        ({"layer_norm_eps": 1e-3}, "epsilon 0.001"),
        ({"patch_size": 6}, "do not belong together"),
        ({"image_size": 64}, "positions for 36 patches"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"image_size": [1, 2, 3]}, "makes no sense"),
        ({"num_attention_heads": "4"}, "heads '4' is no positive number"),
        ({"num_attention_heads": 0}, "heads 0 is no positive number"),
        ({"mask_ratio": 1.5}, "mask_ratio 1.5"),
        ({"layer_norm_eps": "small"}, "makes no sense"),
    ):
        write_json(path, config | changes)
        with pytest.raises(CheckpointError, match=words):
            import_weights(tmp_path / "theirs", tmp_path / "ours")
    path.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_weights(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
