"""Quality without labels on real shards: what is measured, what is left out, and the alarm."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.errors import DataError
from mae.evaluation import quality
from mae.evaluation.arms import frozen_arms
from mae.evaluation.outcome import Outcome
from mae.evaluation.quality import spread_of
from mae.evaluation.spectrum import linear_cka
from mae.model.artifact import load_autoencoder, load_encoder, random_encoder, save_artifact
from mae.model.autoencoder import Autoencoder, build_autoencoder
from mae.model.encoder import Encoder
from mae.model.methods import build_model
from mae.params import Params, parse_params
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.devices import Place
from mae.training.pretraining import masked_loss_over, run_identity
from tests.evaluation.plain_shards import shards_without
from tests.evaluation.side_by_side import side_by_side

PLACE = Place(torch.device("cpu"))
STATISTICS = PixelStatistics((0.3,), (0.2,))
MEASURES = {"rank_me", "effective_rank", "uniformity", "collapsed"}


def measure(
    params: Params, shards: Path, encoder: Path, pictures: Path, place: Place = PLACE
) -> Outcome:
    pictures.mkdir(exist_ok=True)
    return quality.run(params, shards, encoder, place, pictures)


def held_out(shards: Path) -> EvalLoader:
    reader = ShardReader(shards, "val")
    return EvalLoader(reader, height=24, width=24, resize=1.0, batch=50, workers=1, cache_mb=0)


def mean_features(encoder: Encoder, shards: Path) -> Tensor:
    normalize = PixelNormalizer(STATISTICS)
    with torch.no_grad():
        parts = [encoder(normalize(batch.images)).mean for batch in held_out(shards)]
    return torch.cat(parts)


def test_an_encoder_is_measured_beside_a_random_one(
    digit_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    params = make_params()
    outcome = measure(params, digit_shards, tiny_encoder, tmp_path / "one")
    expected = {f"{name}{feature}" for name in (*MEASURES, "alpha") for feature in ("", "_cls")}
    expected |= {f"{name}_random" for name in expected}
    assert set(outcome.numbers) == expected | {"cka_random", "cka_cls_random", "val_loss"}
    assert outcome.skipped is None and outcome.comparisons == ()
    artifact = load_autoencoder(tiny_encoder)
    assert outcome.numbers["val_loss"] == pytest.approx(
        masked_loss_over(held_out(digit_shards), artifact.autoencoder, STATISTICS, PLACE.device),
        rel=1e-6,
    )
    encoder = load_encoder(tiny_encoder).encoder
    own = mean_features(encoder, digit_shards)
    other = mean_features(random_encoder(encoder.architecture, params.seed), digit_shards)
    by_hand = {**spread_of(own, 0.05).numbers, "cka_random": linear_cka(own, other)}
    for name, value in by_hand.items():
        assert outcome.numbers[name] == pytest.approx(value, rel=1e-3), name
    assert outcome.detail["images"] == {"val": 120}
    with Image.open(tmp_path / "one" / "spectrum.png") as picture:
        assert picture.width > 400
    assert measure(params, digit_shards, tiny_encoder, tmp_path / "one") == outcome


def test_fewer_images_are_spread_over_the_split(
    digit_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    outcome = measure(
        make_params(quality={"images": 20}), digit_shards, tiny_encoder, tmp_path / "p"
    )
    assert outcome.detail["images"] == {"val": 20}
    assert "The 20 images are no more than the features" in outcome.detail["remarks"][0]


def test_images_without_labels_are_enough(
    make_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    shards = make_shards({"train": {"": 9}, "val": {"": 40}, "test": {"": 3}})
    outcome = measure(make_params(), shards, tiny_encoder, tmp_path / "p")
    assert outcome.skipped is None and set(outcome.numbers) >= MEASURES
    assert outcome.detail["remarks"] == []


def test_test_images_stand_in_for_val(tiny_encoder, make_params, tmp_path: Path) -> None:
    shards = shards_without(make_params(), tmp_path, {"val": 0.0, "test": 0.9})
    outcome = measure(make_params(), shards, tiny_encoder, tmp_path / "p")
    assert list(outcome.detail["images"]) == ["test"]
    assert not any("training images" in line for line in outcome.detail["remarks"])


def test_training_images_are_said_to_be_such(tiny_encoder, make_params, tmp_path: Path) -> None:
    shards = shards_without(make_params(), tmp_path, {"val": 0.0, "test": 0.0})
    outcome = measure(make_params(), shards, tiny_encoder, tmp_path / "p")
    assert outcome.detail["images"] == {"train": 40}
    assert "measured on training images" in outcome.detail["remarks"][0]


def test_an_encoder_alone_has_no_loss(
    digit_shards, tiny_encoder, make_params, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(tiny_encoder, alone)
    (alone / "autoencoder.safetensors").unlink()
    outcome = measure(make_params(), digit_shards, alone, tmp_path / "p")
    assert "val_loss" not in outcome.numbers and "rank_me" in outcome.numbers
    assert "came without its decoder" in " ".join(outcome.detail["remarks"])


def test_features_that_are_all_alike_raise_the_alarm(
    digit_shards, make_params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = make_params()
    collapsed = build_autoencoder(params.model, 1, seed=0)
    with torch.no_grad():
        collapsed.encoder.norm.weight.zero_()
        collapsed.encoder.norm.bias.fill_(0.7)
    save_artifact(tmp_path / "collapsed", collapsed, STATISTICS, {"steps": 1})
    with caplog.at_level(logging.WARNING):
        outcome = measure(params, digit_shards, tmp_path / "collapsed", tmp_path / "p")
    assert outcome.numbers["collapsed"] == 1 and outcome.numbers["effective_rank"] == 0
    assert "alpha" not in outcome.numbers and "cka_random" not in outcome.numbers
    assert "mean feature is the same for every image" in outcome.detail["remarks"][0]
    assert "same for every image" in caplog.text


@pytest.mark.parametrize(("share", "alarm"), [(0.0, False), (1.0, True)])
def test_the_alarm_obeys_the_parameter(
    digit_shards, tiny_encoder, make_params, tmp_path: Path, share: float, alarm: bool
) -> None:
    params = make_params(quality={"collapse": share})
    outcome = measure(params, digit_shards, tiny_encoder, tmp_path / "p")
    assert outcome.numbers["collapsed"] == alarm
    said = [line for line in outcome.detail["remarks"] if "evaluate.quality.collapse" in line]
    assert len(said) == 2 * alarm


def test_a_convolutional_encoder_has_one_feature(digit_shards, make_params, tmp_path: Path) -> None:
    content = make_params().model_dump(mode="json", by_alias=True)
    content["model"] |= {"method": "convolutional"}
    params = parse_params(content)
    save_artifact(tmp_path / "a", build_model(params.model, 1, 10, 0), STATISTICS, {"steps": 1})
    outcome = measure(params, digit_shards, tmp_path / "a", tmp_path / "p")
    assert set(outcome.numbers) >= {"rank_me", "rank_me_random", "val_loss"}
    assert not [name for name in outcome.numbers if "cls" in name]


def test_several_processes_say_the_same(
    digit_shards, tiny_encoder, make_params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params()
    arms = frozen_arms(params, load_encoder(tiny_encoder), pixels=False)
    monkeypatch.setattr(quality, "frozen_arms", lambda *_, **__: arms)
    alone = measure(params, digit_shards, tiny_encoder, tmp_path / "alone")
    outcomes = side_by_side(
        2,
        lambda place: measure(
            params, digit_shards, tiny_encoder, tmp_path / str(place.rank), place
        ),
    )
    assert outcomes == [alone, alone]
    drawn = sorted(path.parent.name for path in tmp_path.rglob("spectrum.png"))
    assert drawn == ["0", "alone"]


def test_an_encoder_for_other_images_is_refused(
    digit_shards, make_encoder, make_params, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="takes images of 3 channels"):
        measure(make_params(), digit_shards, make_encoder(3, 8), tmp_path / "p")


# --- drift -----------------------------------------------------------------------------------


def keep_checkpoint(folder: Path, model: Autoencoder, average: Autoencoder | None = None) -> None:
    """Write what the pretraining task's checkpoint holds of the model."""
    folder.mkdir(parents=True)
    weights = {f"autoencoder.{name}": value for name, value in model.state_dict().items()}
    save_file(weights | {"objective.other": torch.ones(1)}, folder / "weights.safetensors")
    if average is not None:
        averaged = {f"autoencoder.{name}": value for name, value in average.named_parameters()}
        save_file(averaged, folder / "average.safetensors")


def test_drift_is_the_likeness_to_earlier_checkpoints(
    digit_shards,
    make_params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = make_params()
    last, earlier, averaged = (build_autoencoder(params.model, 1, seed) for seed in (1, 2, 3))
    training = {"steps": 30, "precision": "fp32", "data_fingerprint": "data"}
    save_artifact(tmp_path / "artifact", last, STATISTICS, training)
    kept = tmp_path / "runs" / run_identity(params, "fp32", "data") / "checkpoints"
    keep_checkpoint(kept / "step-0000010", earlier)
    keep_checkpoint(kept / "step-0000020", earlier, averaged)
    keep_checkpoint(kept / "step-0000030", last)
    (kept / "step-0000005").mkdir()
    (kept / "step-0000005" / "weights.safetensors").write_bytes(b"no tensors")
    (kept / "damaged-step-0000007").mkdir()
    monkeypatch.setattr(quality, "RUNS", tmp_path / "runs")
    with caplog.at_level(logging.WARNING):
        outcome = measure(params, digit_shards, tmp_path / "artifact", tmp_path / "p")
    own = mean_features(last.eval().encoder, digit_shards)
    found = outcome.detail["drift"]
    assert [line["step"] for line in found] == [10, 20]
    for line, model in zip(found, (earlier, averaged), strict=True):
        then = mean_features(model.eval().encoder, digit_shards)
        assert line["cka"] == pytest.approx(linear_cka(own, then), rel=1e-3)
        assert -1 < line["cka_cls"] < 1
    assert "step-0000005" in caplog.text and "left out" in caplog.text


def test_of_many_checkpoints_some_are_compared(make_params, tmp_path: Path) -> None:
    from mae.evaluation.earlier import earlier_encoders

    params = make_params()
    model = build_autoencoder(params.model, 1, 0)
    save_artifact(tmp_path / "artifact", model, STATISTICS, {"steps": 99})
    for step in range(1, 20):
        keep_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:07d}", model)
    found = earlier_encoders(tmp_path / "run", load_encoder(tmp_path / "artifact"))
    assert len(found) == 8 and {1, 19} <= found.keys() and list(found) == sorted(found)
