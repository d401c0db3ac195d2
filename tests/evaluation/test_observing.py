"""Observing a run: the numbers beside others' formulas, and a run that notices nothing of it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from mae.data.dataset import read_dataset_info
from mae.data.loading.loader import EvalLoader
from mae.data.reader import ShardReader
from mae.evaluation.observing import Observer
from mae.evaluation.reconstructing import Sums, measure
from mae.evaluation.spectrum import effective_rank, eigenvalues, moments_of, rank_me
from mae.model.autoencoder import Autoencoder
from mae.model.encoder import Encoder
from mae.model.masking import draw_masking
from mae.model.methods import PretrainingModel, build_model
from mae.model.patches import patchify
from mae.params import Params, parse_params
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.report.reconstruction import draw_reconstructions
from mae.training.devices import Place
from mae.training.pretraining import held_out, masked_loss_over
from tests.evaluation.plain_shards import shards_without
from tests.evaluation.side_by_side import side_by_side

PLACE = Place(torch.device("cpu"))
FEATURES = {"rank_me", "effective_rank", "collapsed"}
GUESSES = {"error_channel_0", "patch_similarity"}


def params_of(make_params, observe: dict[str, Any] | None = None, **model: Any) -> Params:
    """The tiny model in float32, observed on 60 images, with changes."""
    content = make_params().model_dump(mode="json", by_alias=True)
    content["model"] |= model
    content["pretrain"]["precision"] = "fp32"
    content["runtime"]["observe"] |= {"images": 60} | (observe or {})
    return parse_params(content)


def model_of(params: Params, channels: int = 1, fitted: Any = None) -> PretrainingModel:
    return build_model(params.model, channels, 10, seed=3, fitted=fitted)


def observed(
    params: Params, shards: Path, folder: Path, model: PretrainingModel, **options: Any
) -> dict[str, float]:
    return Observer(params, shards, options.pop("place", PLACE), **options)(model, 7, folder)


def encoded(encoder: Encoder, shards: Path, split: str, positions: Tensor) -> Tensor:
    reader = ShardReader(shards, split)
    loader = EvalLoader(
        reader,
        height=24,
        width=24,
        resize=1.0,
        batch=64,
        workers=1,
        cache_mb=0,
        positions=positions,
    )
    normalize = PixelNormalizer(reader.info.statistics)
    with torch.no_grad():
        return torch.cat([encoder(normalize(batch.images)).mean for batch in loader])


# --- numbers ---------------------------------------------------------------------------------


def test_numbers_are_what_others_compute(digit_shards, make_params, tmp_path: Path) -> None:
    params = params_of(make_params)
    model = model_of(params).eval()
    found = observed(params, digit_shards, tmp_path, model)
    assert set(found) == {"val_loss", "view_similarity", "knn_accuracy"} | FEATURES | GUESSES
    statistics = read_dataset_info(digit_shards).statistics
    batches = list(held_out(params, digit_shards, batch=13, at_most=60))
    loss = masked_loss_over(batches, model, statistics, PLACE.device)
    assert found["val_loss"] == pytest.approx(loss, rel=1e-5)
    # The loss is the squared error of the hidden pixels, and there is one channel.
    assert found["error_channel_0"] == pytest.approx(loss, rel=1e-5)
    own = encoded(model.encoder, digit_shards, "val", torch.arange(60) * 120 // 60)
    moments = moments_of(own)
    assert found["rank_me"] == pytest.approx(rank_me(moments), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(effective_rank(eigenvalues(moments)), rel=1e-4)


def test_knn_is_scikit_learns(digit_shards, make_params, tmp_path: Path) -> None:
    params = params_of(make_params)
    model = model_of(params)
    found = observed(params, digit_shards, tmp_path, model)["knn_accuracy"]
    model.eval()
    queried, bank = torch.arange(60) * 120 // 60, torch.arange(240) * 360 // 240
    classifier = KNeighborsClassifier(
        20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute"
    )
    train, val = ShardReader(digit_shards, "train"), ShardReader(digit_shards, "val")
    classifier.fit(encoded(model.encoder, digit_shards, "train", bank), train.labels[bank])
    queries = encoded(model.encoder, digit_shards, "val", queried)
    assert found == pytest.approx(classifier.score(queries, val.labels[queried]))


def test_similarities_are_those_of_single_patches(digit_shards, make_params) -> None:
    params = params_of(make_params)
    model = model_of(params).eval()
    assert isinstance(model, Autoencoder)
    statistics = read_dataset_info(digit_shards).statistics
    batch = next(iter(held_out(params, digit_shards, batch=5, at_most=5)))
    images = PixelNormalizer(statistics)(batch.images)
    with torch.no_grad():
        whole = model.encoder(images)
        sums = measure(model, images, batch.ids, None, whole)
        guesses, _ = model.reconstruct(images, batch.ids, 0, 0)
        masking = draw_masking(params.model.mask, 0, 0, batch.ids, (3, 3))
        alone = model.encoder.encode(images, masking.keep)[:, 1:]
        within = model.encoder.encode(images)[:, 1:]
    assert sums is not None
    truth, guessed = patchify(images, (8, 8)), patchify(guesses, (8, 8))
    hidden = [
        float(F.cosine_similarity(guessed[i, patch], truth[i, patch], dim=0))
        for i in range(5)
        for patch in masking.hidden[i].tolist()
    ]
    views = [
        float(F.cosine_similarity(alone[i, k], within[i, patch], dim=0))
        for i in range(5)
        for k, patch in enumerate(masking.keep[i].tolist())
    ]
    numbers = sums.numbers(most_channels=1)
    assert numbers["patch_similarity"] == pytest.approx(np.mean(hidden), abs=1e-5)
    assert numbers["view_similarity"] == pytest.approx(np.mean(views), abs=1e-5)


def test_each_channel_has_its_error(make_params) -> None:
    params = params_of(make_params)
    model = model_of(params, channels=3).eval()
    images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(4)
    with torch.no_grad():
        sums = measure(model, images, ids, None, model.encoder(images))
        guesses, mask = model.reconstruct(images, ids, 0, 0)
    assert sums is not None
    for channel in range(3):
        hidden = mask[:, 0]
        error = (guesses[:, channel] - images[:, channel])[hidden].square().mean()
        found = sums.numbers(most_channels=3)[f"error_channel_{channel}"]
        assert found == pytest.approx(float(error), rel=1e-5)
    assert not any("channel" in name for name in sums.numbers(most_channels=2))


def test_sums_add_up(make_params) -> None:
    model = model_of(params_of(make_params)).eval()
    images = torch.randn(6, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(6)

    def sums(rows: slice) -> Sums:
        with torch.no_grad():
            found = measure(model, images[rows], ids[rows], None, model.encoder(images[rows]))
        assert found is not None
        return found

    together, apart = sums(slice(6)), sums(slice(2)).plus(sums(slice(2, 6)))
    assert apart.numbers(1) == pytest.approx(together.numbers(1), rel=1e-5)


def test_patches_without_data_count_for_nothing(make_params) -> None:
    """What lies where there is no data must not change any of the numbers."""
    model = model_of(params_of(make_params)).eval()
    images = torch.randn(3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    other, ids = images.clone(), torch.arange(3)
    other[:, :, :, 16:] = 9.0
    valid = torch.ones(3, 24, 24, dtype=torch.bool)
    valid[:, :, 16:] = False
    with torch.no_grad():
        whole = model.encoder(images)
        first, second = (measure(model, one, ids, valid, whole) for one in (images, other))
    assert first is not None and second is not None
    assert first.numbers(1) == pytest.approx(second.numbers(1), rel=1e-5)
    assert float(first.patches) == 3 * 5  # of the six patches that hold data, one is shown


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"method": "mae", "target": {"kind": "normalized_pixels"}}, {"view_similarity"} | GUESSES),
        ({"method": "mae", "loss": {"kind": "mse", "over": "all"}}, {"view_similarity"} | GUESSES),
        ({"method": "simmim"}, {"view_similarity"} | GUESSES),
        ({"method": "autoencoder"}, GUESSES),
        ({"method": "denoising"}, GUESSES),
        ({"method": "convolutional"}, GUESSES),
        ({"method": "supervised"}, set()),
    ],
)
def test_every_method_can_be_observed(
    digit_shards, make_params, tmp_path: Path, model: dict[str, Any], expected: set[str]
) -> None:
    params = params_of(make_params, **model)
    found = observed(params, digit_shards, tmp_path, model_of(params), draw=draw_reconstructions)
    assert set(found) == {"val_loss", "knn_accuracy"} | FEATURES | expected
    assert all(np.isfinite(value) for value in found.values())
    drawn = (tmp_path / "observed" / "step-0000007.png").exists()
    assert drawn == (model["method"] != "supervised")


def test_tokens_are_alike_or_not(make_params) -> None:
    """Codes have no angle: what is said is how many were guessed."""
    params = params_of(make_params, target={"kind": "tokens", "codes": 4})
    codebook = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    model = model_of(params, fitted={"codebook": codebook}).eval()
    assert isinstance(model, Autoencoder)
    images = torch.randn(8, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sums = measure(model, images, torch.arange(8), None, model.encoder(images))
        outcome = model(images, torch.arange(8), 0, 0)
    right = (outcome.prediction.argmax(dim=2) == outcome.target).double().mean()
    assert sums is not None
    assert sums.numbers(1)["patch_similarity"] == pytest.approx(float(right))


# --- what is missing --------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "knn"), [(0, True), (1, True), (2, False)])
def test_without_labels_or_wish_there_is_no_knn(
    make_params, tmp_path: Path, classes: int, knn: bool
) -> None:
    params = params_of(make_params, observe={"knn": knn})
    shards = shards_without(params, tmp_path, {"val": 0.3, "test": 0.0}, classes)
    found = observed(params, shards, tmp_path, model_of(params))
    assert set(found) == {"val_loss", "view_similarity"} | FEATURES | GUESSES


def test_without_val_train_images_are_looked_at_and_none_votes_for_itself(
    make_params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = params_of(make_params, observe={"images": 20})
    shards = shards_without(params, tmp_path, {"val": 0.0, "test": 0.0}, classes=2)
    observer = Observer(params, shards, PLACE)
    with caplog.at_level(logging.WARNING):
        found = observer(model_of(params), 1, tmp_path)
    assert "no val images" in caplog.text and "knn_accuracy" in found
    assert observer._bank is not None and len(observer._bank) == 20
    assert not set(observer._bank.ids.tolist()) & set(observer._held_out.ids.tolist())


def test_where_every_image_is_looked_at_nobody_is_left_to_vote(make_params, tmp_path: Path) -> None:
    params = params_of(make_params)
    shards = shards_without(params, tmp_path, {"val": 0.0, "test": 0.0}, classes=2)
    assert "knn_accuracy" not in observed(params, shards, tmp_path, model_of(params))


# --- training notices nothing -------------------------------------------------------------------


def test_the_model_comes_back_as_it_was(digit_shards, make_params, tmp_path: Path) -> None:
    params = params_of(make_params, drop_path=0.5)
    model = model_of(params).train()
    model.encoder.norm.eval()  # a part that was frozen by hand stays so
    images = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    outcome = model(images, torch.arange(2), 0, 0)
    outcome.prediction.mean().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    observed(params, digit_shards, tmp_path, model, draw=draw_reconstructions)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert torch.is_grad_enabled()


def test_the_model_comes_back_even_where_observing_fails(
    digit_shards, make_params, tmp_path: Path
) -> None:
    params = params_of(make_params)
    model = model_of(params).train()

    def fails(*_: Any) -> None:
        raise RuntimeError("no pencil")

    with pytest.raises(RuntimeError, match="no pencil"):
        observed(params, digit_shards, tmp_path, model, draw=fails)
    assert model.training and model.encoder.training


def test_equal_weights_give_equal_numbers_at_any_time(
    digit_shards, make_params, tmp_path: Path
) -> None:
    params = params_of(make_params)
    model, observer = model_of(params), Observer(params, digit_shards, PLACE)
    first = observer(model, 10, tmp_path)
    other = observer(build_model(params.model, 1, 10, seed=8), 20, tmp_path)
    assert first != other
    assert observer(model, 30, tmp_path) == first
    assert observed(params, digit_shards, tmp_path, model) == first


def test_several_processes_see_the_same_and_one_draws(
    digit_shards, make_params, tmp_path: Path
) -> None:
    """240 images vote, which seven processes cannot share evenly."""
    params = params_of(make_params)
    alone = observed(params, digit_shards, tmp_path / "alone", model_of(params))
    models = [model_of(params) for _ in range(7)]

    def one_of_many(place: Place) -> dict[str, float]:
        return observed(
            params,
            digit_shards,
            tmp_path / str(place.rank),
            models[place.rank],
            place=place,
            draw=draw_reconstructions,
        )

    everywhere = side_by_side(7, one_of_many)
    assert all(found == everywhere[0] for found in everywhere)
    assert everywhere[0] == pytest.approx(alone, rel=1e-5)
    assert [path.parents[1].name for path in tmp_path.rglob("*.png")] == ["0"]


# --- picture and alarm ---------------------------------------------------------------------------


def test_a_picture_that_cannot_be_written_ends_nothing(
    digit_shards, make_params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = params_of(make_params)
    (tmp_path / "observed").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        found = observed(
            params, digit_shards, tmp_path, model_of(params), draw=draw_reconstructions
        )
    assert "val_loss" in found and "step-0000007.png was not drawn" in caplog.text


def test_pictures_show_eight_images_that_stay_the_same(
    digit_shards, make_params, tmp_path: Path
) -> None:
    params = params_of(make_params)
    seen: list[tuple[Tensor, Tensor, Path]] = []

    def draw(
        model: PretrainingModel,
        statistics: PixelStatistics,
        images: Tensor,
        ids: Tensor,
        path: Path,
    ) -> None:
        assert not model.training and statistics.channels == 1
        seen.append((images, ids, path))

    observer, model = Observer(params, digit_shards, PLACE, draw), model_of(params)
    observer(model, 4, tmp_path)
    observer(model, 123, tmp_path)
    (images, ids, first), (again, same, second) = seen
    assert images.dtype == torch.uint8 and images.shape == (8, 1, 24, 24)
    assert torch.equal(images, again) and torch.equal(ids, same)
    assert [first.name, second.name] == ["step-0000004.png", "step-0000123.png"]


def test_collapse_is_said_once_and_no_slow_beginning(
    digit_shards, make_params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = params_of(make_params).model_dump(mode="json", by_alias=True)
    content["evaluate"]["quality"]["collapse"] = 0.9
    params = parse_params(content)
    model, observer = model_of(params), Observer(params, digit_shards, PLACE)
    with caplog.at_level(logging.WARNING):
        for step in (10, 20):  # all encoders begin so
            assert observer(model, step, tmp_path)["collapsed"] == 1.0
        assert not caplog.records
        with torch.no_grad():
            model.encoder.norm.weight[1:] = 0
        for step in (30, 40):
            assert observer(model, step, tmp_path)["effective_rank"] == pytest.approx(1.0)
    assert len(caplog.records) == 1 and "at step 30" in caplog.text
    caplog.clear()
    with torch.no_grad():
        model.encoder.norm.weight.zero_()
    with caplog.at_level(logging.WARNING):
        found = observed(params, digit_shards, tmp_path, model)
    assert found["effective_rank"] == 0.0 and "fill 0.0 of 32 directions" in caplog.text
