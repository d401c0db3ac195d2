"""Pretraining through real shards: every method, fitted targets, the ratio's schedule, no data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mae.data.loading.batch import Batch
from mae.data.sharding.run import shard_dataset
from mae.errors import CheckpointError
from mae.model.artifact import load_autoencoder, load_encoder, save_artifact
from mae.model.autoencoder import Autoencoder, Prediction
from mae.model.methods import build_model
from mae.params import Params, parse_params
from mae.pixels import PixelStatistics
from mae.training.devices import Place
from mae.training.pretraining import Pretrained, PretrainTask, pretrain, run_identity
from tests.small_project import small_params, write_images

PLACE = Place(torch.device("cpu"))
STATISTICS = PixelStatistics((0.5,), (0.25,))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_images(root / "source")
    shard_dataset("images", small_params(root / "source").data, 0, root / "shards")
    return root


def params_of(source: Path, **model: Any) -> Params:
    """Two epochs of the small project's parameters, with changes to the model's section."""
    content = small_params(source / "source", **model).model_dump(mode="json", by_alias=True)
    content["pretrain"] |= {"epochs": 2, "batch": 8, "warmup_epochs": 0, "precision": "fp32"}
    return parse_params(content)


def run(source: Path, runs: Path, **model: Any) -> Pretrained:
    return pretrain(params_of(source, **model), source / "shards", runs, PLACE)


@pytest.mark.parametrize(
    "method", ["mae", "autoencoder", "denoising", "simmim", "convolutional", "supervised"]
)
def test_every_method_runs_and_is_loaded_again(source: Path, tmp_path: Path, method: str) -> None:
    done = run(source, tmp_path, method=method, target="pixels")
    assert 0 < done.summary["train_loss"] < 10 and 0 < done.summary["val_loss"] < 10
    save_artifact(tmp_path / "artifact", done.autoencoder, done.statistics, {})
    images = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(tmp_path / "artifact").encoder
    assert torch.equal(encoder(images).mean, done.autoencoder.encoder(images).mean)
    again = load_autoencoder(tmp_path / "artifact").autoencoder
    assert type(again) is type(done.autoencoder)


@pytest.mark.parametrize("kind", ["pca", "tokens"])
def test_a_target_is_fitted_once_and_travels_with_the_weights(
    source: Path, tmp_path: Path, kind: str
) -> None:
    target = {"kind": kind, "components": 5, "codes": 7}
    done = run(source, tmp_path / "runs", target=target)
    path = done.folder / "target.safetensors"
    fitted = load_file(path)
    assert done.summary["train_loss"] < (2.0 if kind == "pca" else 3.0)
    assert isinstance(done.autoencoder, Autoencoder)
    for name, buffer in done.autoencoder.target.named_buffers():
        assert torch.equal(buffer, fitted[name]) and buffer.any()
    written = path.stat().st_mtime_ns
    again = run(source, tmp_path / "runs", target=target)
    assert path.stat().st_mtime_ns == written and again.summary == done.summary
    save_artifact(tmp_path / "artifact", done.autoencoder, done.statistics, {})
    loaded = load_autoencoder(tmp_path / "artifact").autoencoder
    images, ids = torch.zeros(1, 1, 16, 24), torch.tensor([1])
    theirs, ours = (model.reconstruct(images, ids, 0, 0) for model in (loaded, done.autoencoder))
    assert torch.equal(theirs[0], ours[0])
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"target.safetensors is damaged .*: delete it"):
        run(source, tmp_path / "runs", target=target)


def test_methods_and_variants_are_different_runs(source: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"method": "simmim"},
        {"loss": "l1"},
        {"loss": {"kind": "mse", "over": "all"}},
        {"positions": "learned"},
        {"mask": {"kind": "grid", "ratio": 0.75}},
        {"mask": {"kind": "random", "ratio": 0.5, "final_ratio": 0.75}},
    ]
    identities = {run_identity(params_of(source, **v), "fp32", "data") for v in variants}
    assert len(identities) == len(variants)


def watched(params: Params) -> tuple[PretrainTask, list[Prediction]]:
    """Return the task and a list to which each forward pass adds what was predicted."""
    model = build_model(params.model, 1, 2, 0)
    outcomes: list[Prediction] = []
    model.register_forward_hook(lambda _, __, outcome: outcomes.append(outcome))
    return PretrainTask(model, STATISTICS, seed=0, epochs=5), outcomes


def batch(images: torch.Tensor) -> Batch:
    return Batch(images, torch.arange(len(images)), torch.zeros(len(images), dtype=torch.int64))


def stored(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 200, (3, 1, 16, 24), generator=generator)
    pixels[1, :, :, 20:] = 0  # the last of six columns of patches
    return pixels.to(dtype)


def test_the_ratio_is_that_of_the_epoch(source: Path) -> None:
    mask = {"kind": "random", "ratio": 0.5, "final_ratio": 0.75}
    task, outcomes = watched(params_of(source, mask=mask))
    for epoch in range(5):
        task(batch(stored(torch.uint8)), epoch)
    visible = [outcome.masking.keep.shape[1] for outcome in outcomes]
    assert visible == [12, 10, 9, 7, 6]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_stored_pixels_say_where_there_is_no_data(source: Path, dtype: torch.dtype) -> None:
    mask = {"kind": "random", "ratio": 0.75, "no_data": 0}
    task, outcomes = watched(params_of(source, mask=mask))
    loss, _ = task(batch(stored(dtype)), 0)
    masks = outcomes[0].masking.as_mask().reshape(3, 4, 6)
    assert masks.sum(dim=(1, 2)).tolist() == [18, 15, 18] and not masks[1, :, 5].any()
    loss.backward()
    assert torch.isfinite(loss)
