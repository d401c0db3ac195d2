"""The gate lets a faithful export pass and names what is wrong with any other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.export.agreement import decisions_kept, fit_probe, neighbours_kept
from mae.export.description import EncoderDescription
from mae.export.held_out import HeldOutImages, held_out_images
from mae.export.onnx_export import PixelEncoder
from mae.export.parity import (
    Deviation,
    Parity,
    ParityError,
    enforce_parity,
    measure_parity,
    parity_numbers,
    torch_answers,
)
from mae.export.runtime import Settings, open_runtime
from mae.model.artifact import load_encoder
from mae.params import ParityLimits
from tests.small_project import Exported

LIMITS = ParityLimits(max_abs=1e-4, min_cosine=0.99999, neighbours=1.0, decisions=1.0)
CPU = "CPUExecutionProvider"


def tampered(exported: Exported, path: Path, *, at: int = 0, by: float = 0.5) -> Path:
    """Give the file's last normalisation another bias, in one entry."""
    model = onnx.load(exported.onnx)
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    bias = np.zeros(16, np.float32)
    bias[at] = by
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "another.bias"))
    norm.input[2] = "another.bias"
    onnx.save(model, path)
    return path


def held_out(exported: Exported, count: int = 6) -> HeldOutImages:
    about = EncoderDescription.of(load_encoder(exported.pretrained))
    return held_out_images(exported.shards, about, count, exported.params.runtime)[0]


def compare(exported: Exported, onnx_file: Path, images: HeldOutImages | None = None) -> Parity:
    artifact = load_encoder(exported.pretrained)
    images = images or held_out(exported)
    expected = torch_answers(PixelEncoder(artifact.encoder, artifact.statistics), images)
    probe = fit_probe(artifact, exported.shards, "mean", exported.params.runtime)
    assert not isinstance(probe, str)
    session = open_runtime(onnx_file, Settings("cpu"))
    return measure_parity([expected], session, [images], "mean", probe)


def test_images_are_those_of_the_evaluation_loader(exported: Exported) -> None:
    images = held_out(exported, 5)
    reader = ShardReader(exported.shards, "test")
    loader = EvalLoader(reader, height=16, width=24, resize=1.0, batch=3, workers=1, cache_mb=0)
    everything = dict(zip(reader.keys, torch.cat([b.images for b in loader]), strict=True))
    assert images.split == "test"
    assert len(set(images.keys)) == len(images) == 5
    for key, image in zip(images.keys, images.images, strict=True):
        np.testing.assert_array_equal(image, everything[key].numpy())


def test_a_faithful_file_passes(exported: Exported) -> None:
    found = compare(exported, exported.onnx)
    assert {one.batch for one in found.deviations} == {1, 2, 6}
    assert (found.neighbours, found.decisions) == (1.0, 1.0)
    enforce_parity(found, LIMITS, "fp32", CPU, "encoder")
    numbers = parity_numbers([found])
    outputs = ("cls", "mean", "patches")
    assert numbers["max_abs"] == max(numbers[f"max_abs_{name}"] for name in outputs)
    assert 0 < numbers["max_abs"] < 1e-4
    assert 0.99999 < numbers["min_cosine"] <= 1 + 1e-9


def test_tampered_weights_are_named_with_output_batch_image_and_numbers(
    exported: Exported, tmp_path: Path
) -> None:
    found = compare(exported, tampered(exported, tmp_path / "x.onnx"))
    with pytest.raises(ParityError) as caught:
        enforce_parity(found, LIMITS, "fp32", CPU, "encoder")
    message = str(caught.value)
    for part in (
        *("encoder in fp32", "output '", "batch ", CPU, "off by 0.5"),
        *("export.parity.fp32.max_abs 0.0001", "cosine of 0.", "min_cosine 0.99999", ".png"),
    ):
        assert part in message, message
    assert parity_numbers([found])["max_abs_cls"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("by", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(exported: Exported, tmp_path: Path, by: float) -> None:
    loose = ParityLimits(max_abs=None, min_cosine=1e-9, neighbours=0.0, decisions=0.0)
    found = compare(exported, tampered(exported, tmp_path / "x.onnx", by=by))
    assert found.neighbours is None
    with pytest.raises(ParityError, match="off by inf"):
        enforce_parity(found, loose, "int8", CPU, "encoder")


def test_one_turned_vector_fails_on_cosine_alone(exported: Exported) -> None:
    loose = LIMITS.model_copy(update={"max_abs": None})
    found = compare(exported, exported.onnx)
    enforce_parity(found, loose, "fp16", CPU, "encoder")
    turned = Deviation("mean", 2, 1e-3, "a.png", 0.5, "b.png", " at 8 x 8")
    with pytest.raises(ParityError, match=r"'mean' at batch 2 at 8 x 8 .*cosine of 0\.5.*b\.png"):
        enforce_parity(
            replace(found, deviations=[*found.deviations, turned]), loose, "fp16", CPU, "encoder"
        )


def test_neighbours_and_decisions_have_limits_of_their_own(exported: Exported) -> None:
    found = compare(exported, exported.onnx)
    for name, words in (("neighbours", "nearest neighbour"), ("decisions", "class by a linear")):
        limits = LIMITS.model_copy(update={name: 0.9})
        enforce_parity(replace(found, **{name: 0.9}), limits, "int8", CPU, "encoder")
        with pytest.raises(ParityError, match=rf"{words}.* of 89\.0%.*int8\.{name} 0\.9"):
            enforce_parity(replace(found, **{name: 0.89}), limits, "int8", CPU, "encoder")


def test_a_file_that_shuffles_a_batch_is_caught(exported: Exported) -> None:
    """At batch 1 all is well; in larger ones rows change places."""

    class Shuffling:
        def __init__(self) -> None:
            self.inner = open_runtime(exported.onnx, Settings("cpu"))

        def get_outputs(self) -> list:
            return self.inner.get_outputs()

        def run(self, names: list[str], feed: dict) -> list[np.ndarray]:
            return [value[::-1] for value in self.inner.run(names, feed)]

    images = held_out(exported)
    artifact = load_encoder(exported.pretrained)
    expected = torch_answers(PixelEncoder(artifact.encoder, artifact.statistics), images)
    found = measure_parity([expected], Shuffling(), [images], "mean", None)
    assert found.decisions is None
    worst = {one.batch: one.max_abs for one in found.deviations if one.output == "cls"}
    assert worst[1] < 1e-4 < worst[2]


# --- agreement, by hand --------------------------------------------------------------------------


def test_neighbours_kept() -> None:
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert neighbours_kept(vectors, vectors * 3) == 1.0
    moved = vectors.copy()
    moved[1] = [-1.0, 0.05]  # so that 0 looks elsewhere, and 1 itself too
    assert neighbours_kept(vectors, moved) == 0.5
    # Of two that torch finds equally near, either will do.
    twins = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    nudged = twins + np.array([[0, 0], [0, 1e-9], [1e-9, 0]])
    assert neighbours_kept(twins, nudged) == 1.0


def test_decisions_kept() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0 - 1e-7], [5.0, 0.0]])
    assert decisions_kept(logits, logits[:, ::-1]) == 0.25  # but for the tie
    assert decisions_kept(logits, logits + 7) == 1.0


# --- data ----------------------------------------------------------------------------------------


def test_other_channels_than_the_data_are_refused(exported: Exported) -> None:
    about = EncoderDescription.of(load_encoder(exported.pretrained))
    colour = type(about.statistics)((0.5,) * 3, (0.2,) * 3, 8)
    other = replace(about, statistics=colour)
    with pytest.raises(DataError, match=r"3 channel.* and the data has 1"):
        held_out_images(exported.shards, other, 5, exported.params.runtime)
