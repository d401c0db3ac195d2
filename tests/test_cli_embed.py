"""`mae embed`, `mae classify` and `mae search`, as a person gives them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mae import cli
from mae.errors import CheckpointError, Interrupted, ParamsError
from mae.export import embed as embed_module
from tests.export.small_onnx import SmallOnnx, small_onnx

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def small() -> SmallOnnx:
    return small_onnx()


def invoke(*arguments: object) -> str:
    result = RUNNER.invoke(cli.app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def embed(small: SmallOnnx, out: Path, *more: object) -> str:
    return invoke(
        *("embed", "--model", small.root, "--device", "cpu", "--images", small.source),
        *("--out", out, "--feature", "mean", *more),
    )


def test_embed_says_what_it_did(small: SmallOnnx, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    said = embed(small, out, "--batch", "8", "--workers", "1", "--threads", "1")
    assert "40 images embedded" in said
    assert "1 left out, listed in" in said
    assert "the model computed" in said
    assert np.load(out).shape == (40, 16)


def test_embed_a_split_of_shards(small: SmallOnnx, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    invoke(
        *("embed", "--model", small.encoder, "--device", "cpu", "--images", small.shards),
        *("--split", "val", "--out", out),
    )
    assert 0 < pq.read_table(out).num_rows < 40


def test_classify(small: SmallOnnx, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    said = invoke(
        *("classify", "--model", small.root, "--device", "cpu", "--images", small.source),
        *("--out", out, "--top", "1"),
    )
    assert "40 images classified" in said
    assert out.read_text().startswith("key,class_1,probability_1\nbright/000.png,")


def test_search(small: SmallOnnx, tmp_path: Path) -> None:
    embed(small, tmp_path / "e.parquet")
    said = invoke("search", "build", tmp_path / "e.parquet", "--out", tmp_path / "index")
    assert "40 images in the index" in said
    asked = ("search", "query", "--index", tmp_path / "index", "--model", small.encoder)
    asked += ("--device", "cpu", "--image", small.source / "dark/001.png", "-k", "3")
    lines = invoke(*asked).splitlines()
    start = lines.index("001.png")
    assert lines[start + 1].split() == ["1", "1.0000", "dark/001.png"]
    assert len([line for line in lines[start + 1 :] if ".png" in line]) == 3
    invoke(*asked, "--out", tmp_path / "found.png", "--images", small.source)
    assert Image.open(tmp_path / "found.png").width > 300
    invoke(*asked, "--out", tmp_path / "found.csv")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 4
    with pytest.raises(ParamsError, match="needs --images"):
        invoke(*asked, "--out", tmp_path / "found.png")
    with pytest.raises(ParamsError, match=r"\.png or \.csv"):
        invoke(*asked, "--out", tmp_path / "found.txt")


def test_unknown_model(small: SmallOnnx, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no registered model 'champoin'"):
        invoke(
            *("embed", "--model", "champoin", "--images", small.source),
            *("--out", tmp_path / "e.parquet"),
        )


def test_ctrl_c_says_how_to_go_on(
    small: SmallOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embed_module, "embed_images", interrupted)
    with pytest.raises(Interrupted, match="same command goes on"):
        embed(small, tmp_path / "e.parquet")
