import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae.errors import CheckpointError
from mae.files import read_json, write_json
from mae.model.artifact import load_autoencoder, load_encoder, save_artifact
from mae.model.autoencoder import build_autoencoder
from mae.pixels import PixelStatistics
from tests.model.test_autoencoder import model_params, noise

STATISTICS = PixelStatistics((0.4,), (0.2,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    autoencoder = build_autoencoder(model_params(patch=(4, 6)), 1, 0)
    save_artifact(tmp_path / "pretrain", autoencoder, STATISTICS, {"steps": 3})
    return tmp_path / "pretrain"


def test_what_is_saved_is_loaded_bit_for_bit(folder: Path) -> None:
    original = build_autoencoder(model_params(patch=(4, 6)), 1, 0).eval()
    images, ids = noise(2, 1, 16, 24), torch.tensor([1, 2])
    loaded = load_autoencoder(folder)
    assert torch.equal(
        loaded.autoencoder(images, ids, 0, 0).prediction, original(images, ids, 0, 0).prediction
    )
    encoder = load_encoder(folder)
    assert torch.equal(encoder.encoder(images).cls, original.encoder(images).cls)
    assert encoder.statistics == loaded.statistics == STATISTICS
    assert encoder.info["training"] == {"steps": 3}


def test_the_same_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    autoencoder = build_autoencoder(model_params(patch=(4, 6)), 1, 0)
    save_artifact(tmp_path / "again", autoencoder, STATISTICS, {"steps": 3})
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_damage_is_said_in_one_line(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_encoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_encoder(folder)


def test_every_key_must_match(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    weights = load_file(path)
    cls = weights.pop("cls_token")
    save_file(weights | {"cls": cls}, path)
    with pytest.raises(CheckpointError, match="missing cls_token; unknown cls"):
        load_encoder(folder)
    save_file(weights | {"cls_token": torch.zeros(1, 1, 8)}, path)
    with pytest.raises(CheckpointError, match=r"cls_token \(1, 1, 8\) instead of \(1, 1, 32\)"):
        load_encoder(folder)


def test_later_formats_and_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    info = read_json(folder / "encoder.json")
    write_json(folder / "encoder.json", info | {"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        load_encoder(folder)
    (folder / "encoder.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(folder)
    with pytest.raises(CheckpointError, match="run the pretrain stage"):
        load_encoder(tmp_path / "nowhere")
