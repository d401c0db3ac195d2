"""The images that are reconstructed worst: all are looked at, under masks that stay the same."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mae import cli
from mae.errors import CheckpointError, DataError
from mae.export.images import InputImage
from mae.hashing import text_id
from mae.model.artifact import load_autoencoder
from mae.model.autoencoder import build_autoencoder
from mae.model.methods import build_model
from mae.model.patches import gather_patches, patchify
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.report.ranking import MASKS, worst_images, write_ranking
from mae.report.reconstruct import reconstruct_images
from tests.small_project import small_params

STATISTICS = PixelStatistics((0.5,), (0.25,))


def images(count: int) -> list[InputImage]:
    draw = np.random.default_rng(0)
    contrasts = draw.permutation(np.linspace(0.05, 1, count))
    return [
        InputImage(
            f"{index:03d}.png",
            np.uint8(128 + 127 * contrast * draw.uniform(-1, 1, (1, 16, 24))),
        )
        for index, contrast in enumerate(contrasts)
    ]


def test_worst_are_those_of_the_highest_loss_over_the_same_masks(tmp_path: Path) -> None:
    autoencoder = build_autoencoder(small_params(tmp_path, target="pixels").model, 1, 0).eval()
    found = worst_images(iter(images(70)), autoencoder, STATISTICS, 5)
    expected = {}
    for image in images(70):
        pixels = PixelNormalizer(STATISTICS)(torch.from_numpy(image.pixels)[None])
        losses = []
        for mask in range(MASKS):
            with torch.no_grad():
                outcome = autoencoder(pixels, torch.tensor([text_id(image.key)]), 0, mask)
            truth = gather_patches(patchify(pixels, (4, 4)), outcome.masking.hidden)
            losses.append(float((outcome.prediction - truth).square().mean()))
        expected[image.key] = np.mean(losses)
    order = sorted(expected, key=expected.get, reverse=True)
    assert [one.image.key for one in found] == order[:5]
    assert [one.loss for one in found] == pytest.approx(
        [expected[name] for name in order[:5]], rel=1e-5
    )
    fewer = worst_images(reversed(images(70)[:3]), autoencoder, STATISTICS, 5)
    assert [one.image.key for one in fewer] == [name for name in order if name < "003"]


def test_what_holds_no_data_costs_nothing(tmp_path: Path) -> None:
    """Black below the middle: neither hidden nor counted where black is no data."""
    mask = {"kind": "random", "ratio": 0.75, "no_data": 0}
    params = small_params(tmp_path, target="pixels", mask=mask).model
    autoencoder = build_autoencoder(params, 1, 0).eval()
    upper = np.random.default_rng(0).integers(1, 256, (1, 16, 24), dtype=np.uint8)
    upper[:, 8:] = 0
    image = InputImage("upper.png", upper)
    (found,) = worst_images([image], autoencoder, STATISTICS, 1)
    pixels = PixelNormalizer(STATISTICS)(torch.from_numpy(upper)[None])
    losses = []
    for number in range(MASKS):
        valid = torch.from_numpy(upper > 0)
        reconstruction, hidden = autoencoder.reconstruct(
            pixels, torch.tensor([text_id("upper.png")]), 0, number, valid=valid
        )
        assert not hidden[..., 8:, :].any() and hidden.any()
        losses.append(float((reconstruction - pixels)[hidden].square().mean()))
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_equals_keep_their_order(tmp_path: Path) -> None:
    autoencoder = build_model(
        small_params(tmp_path, method="convolutional").model, 1, classes=0, seed=0
    )
    same = [InputImage(name, images(1)[0].pixels) for name in ("b", "a", "c")]
    found = worst_images(same, autoencoder.eval(), STATISTICS, 2)
    assert [one.image.key for one in found] == ["b", "a"]
    write_ranking(tmp_path / "list.csv", found)
    rows = list(csv.DictReader((tmp_path / "list.csv").open()))
    assert [row["image"] for row in rows] == ["b", "a"]
    assert float(rows[0]["loss"]) == pytest.approx(found[0].loss, rel=1e-5)


@pytest.fixture
def own(project: Path, tmp_path: Path) -> Path:
    """A folder of the project's images, among them one that is nothing but noise between flats."""
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(1)
    for index in range(12):
        Image.fromarray(np.full((16, 24), 100 + index, np.uint8)).save(folder / f"flat{index}.png")
    noise = draw.integers(0, 256, (16, 24), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "broken.png").write_text("no image")
    return folder


def test_command_lists_and_draws_the_worst(project: Path, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "worst.png"
    arguments = ["reconstruct", "--checkpoint", str(project / "artifacts/pretrain")]
    arguments += ["--images", str(own), "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(
        cli.app, [*arguments, "--worst", "3", "--limit", "2"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "the worst of 13 images" in done.output
    assert "2 images drawn" in done.output
    assert "left out broken.png" in done.output
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert len(rows) == 3 and rows[0]["rank"] == "1"
    assert all(row["image"] in done.output for row in rows)
    again = tmp_path / "again.png"
    reconstruct_images(project / "artifacts/pretrain", own, again, limit=2, worst=3)
    assert again.read_bytes() == out.read_bytes()
    assert again.with_suffix(".csv").read_bytes() == out.with_suffix(".csv").read_bytes()


def test_what_cannot_be_reconstructed_is_said(project: Path, own: Path, tmp_path: Path) -> None:
    from mae.model.artifact import save_artifact, save_encoder_artifact

    checkpoint, out = tmp_path / "checkpoint", tmp_path / "x.png"
    params = small_params(tmp_path, method="supervised").model
    model = build_model(params, 1, classes=3, seed=0)
    save_artifact(checkpoint, model, STATISTICS, {})
    with pytest.raises(CheckpointError, match="reconstructs nothing"):
        reconstruct_images(checkpoint, own, out, limit=2)
    encoder = load_autoencoder(project / "artifacts/pretrain").autoencoder.encoder
    save_encoder_artifact(checkpoint, encoder, STATISTICS, {}, resize=1.0)
    with pytest.raises(CheckpointError, match="an encoder alone"):
        reconstruct_images(checkpoint, own, out, limit=2)
    only_broken = tmp_path / "only"
    only_broken.mkdir()
    (only_broken / "broken.png").write_text("no image")
    for worst in (None, 3):
        with pytest.raises(DataError, match=r"broken\.png"):
            reconstruct_images(project / "artifacts/pretrain", only_broken, out, 2, worst)
    assert not out.exists() and not out.with_suffix(".csv").exists()
