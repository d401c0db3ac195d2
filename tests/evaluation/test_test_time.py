import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mae.errors import DivergedError
from mae.evaluation import test_time as protocol
from mae.evaluation.adaptation import Adaptation
from mae.evaluation.labelled import train_and_test
from mae.evaluation.logistic import LinearModel
from mae.evaluation.robustness import Condition, View
from mae.evaluation.test_time import (
    Adapted,
    ImageStream,
    mcnemar,
    measure_adaptation,
    why_not_adaptable,
)
from mae.model.artifact import load_autoencoder, load_encoder, save_artifact, save_encoder_artifact
from mae.model.methods import build_model
from mae.params.evaluation import TestTimeParams
from mae.pixels import PixelStatistics
from mae.training.devices import Place
from tests.evaluation.side_by_side import side_by_side

CPU = torch.device("cpu")
HERE = Place(CPU)
STATISTICS = PixelStatistics((0.3,), (0.2,))


@pytest.fixture(autouse=True)
def in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that images side by side and alone differ by rounding alone."""
    monkeypatch.setattr("mae.evaluation.adaptation.resolve_precision", lambda *_: "fp32")


def wanted(**changes: Any) -> TestTimeParams:
    values: dict[str, Any] = {
        "images": 20,
        "steps": 2,
        "views": 2,
        "lr": 0.3,
        "online": False,
        "corruptions": ["noise"],
        "severity": 3,
        "feature": "mean",
    }
    return TestTimeParams.model_validate(values | changes)


class Bench:
    """What measure_adaptation takes, of a small encoder and a head that knows nothing."""

    def __init__(self, shards: Path, encoder: Path, images: int = 20, **changes: Any) -> None:
        whole = load_autoencoder(encoder)
        _, test = train_and_test(shards)
        self.wanted = wanted(images=images, **changes)
        self.adaptation = Adaptation(whole.autoencoder, whole.statistics, self.wanted, 0, CPU)
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(10, 32, generator=generator, dtype=torch.float64)
        zeros, ones = torch.zeros(32).double(), torch.ones(32).double()
        self.head = LinearModel(weight, zeros[:10], zeros, ones)
        self.split = test.take(torch.arange(images))

    def measure(
        self, place: Place = HERE, rows: list[int] | None = None, noisy: bool = True
    ) -> Adapted:
        split = self.split if rows is None else self.split.take(torch.tensor(rows))
        stream = ImageStream(split, View(24, 24, 1.0), 0, 1)
        condition = Condition("noise", 3) if noisy else None
        return measure_adaptation(self.adaptation, self.head, stream, condition, self.wanted, place)


@given(gained=st.integers(0, 300), lost=st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_many_changes_have_a_p_value_too() -> None:
    assert 0 < mcnemar(5200, 4800) < 1e-4


def test_gains_and_losses_are_counted_by_image() -> None:
    frozen = torch.tensor([True, True, True, False, False])
    adapted = torch.tensor([True, False, True, True, False])
    found = Adapted(frozen, adapted, torch.tensor([[1.0] * 5, [0.5] * 5])).to_dict()
    assert (found["gained"], found["lost"], found["p_value"]) == (1, 1, 1.0)
    assert (found["accuracy"], found["accuracy_frozen"]) == (0.6, 0.6)
    assert found["losses"] == [1.0, 0.5]


def test_a_tiny_rate_changes_no_answer(digit_shards, tiny_encoder) -> None:
    found = Bench(digit_shards, tiny_encoder, lr=1e-12).measure()
    assert torch.equal(found.frozen, found.adapted)


def test_a_rate_that_counts_changes_answers_and_not_those_of_the_frozen_encoder(
    digit_shards, tiny_encoder
) -> None:
    still, moved = (
        Bench(digit_shards, tiny_encoder, images=60, lr=lr).measure() for lr in (1e-12, 2.0)
    )
    assert torch.equal(still.frozen, moved.frozen)
    assert not torch.equal(moved.frozen, moved.adapted)


def test_after_a_reset_neither_order_nor_company_matters(digit_shards, tiny_encoder) -> None:
    bench = Bench(digit_shards, tiny_encoder, images=6)
    order = [4, 1, 5, 0]
    whole, some = bench.measure(), bench.measure(rows=order)
    torch.testing.assert_close(some.losses, whole.losses[:, order], rtol=1e-5, atol=1e-6)
    assert torch.equal(some.adapted, whole.adapted[order])


def test_online_what_came_before_matters(digit_shards, tiny_encoder) -> None:
    bench = Bench(digit_shards, tiny_encoder, images=6, online=True)
    whole, last = bench.measure(), bench.measure(rows=[5])
    alone = Bench(digit_shards, tiny_encoder, images=6).measure()
    # The first image finds the encoder as pretrained, the last one does not.
    torch.testing.assert_close(whole.losses[:, 0], alone.losses[:, 0])
    torch.testing.assert_close(last.losses[:, 0], alone.losses[:, 5])
    assert (whole.losses[0, 5] - last.losses[0, 0]).abs() > 1e-3 * last.losses[0, 0]
    assert torch.equal(whole.frozen, alone.frozen)


@pytest.mark.parametrize("online", [False, True])
def test_processes_share_the_images_and_agree(
    digit_shards, tiny_encoder, monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    monkeypatch.setattr("mae.evaluation.adaptation._MOST_AT_ONCE", 2)

    def measure(place: Place) -> Adapted:
        return Bench(digit_shards, tiny_encoder, images=7, online=online).measure(place)

    alone = measure(HERE)
    for found in side_by_side(2, measure):
        assert torch.equal(found.frozen, alone.frozen)
        assert torch.equal(found.adapted, alone.adapted)
        # Products round otherwise where memory lies otherwise.
        torch.testing.assert_close(found.losses, alone.losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_divergence_is_said(digit_shards, tiny_encoder, steps: int) -> None:
    with pytest.raises(DivergedError, match=r"lower evaluate\.test_time\.lr, which is 1e\+30"):
        Bench(digit_shards, tiny_encoder, images=3, steps=steps, lr=1e30).measure()


def test_measures_digits_the_same_each_time(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    params = make_params(
        test_time={"images": 24, "steps": 2, "views": 2, "corruptions": ["noise", "jpeg"]},
        linear={"logistic_c": [1.0]},
    )
    first = protocol.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    assert first == protocol.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    numbers = first.numbers
    assert numbers["accuracy"] == pytest.approx(
        (numbers["accuracy_noise"] + numbers["accuracy_jpeg"]) / 2
    )
    assert list(first.detail["conditions"]) == ["noise", "jpeg", "clean"]
    noise = first.comparisons[0]
    assert noise.task == "Test-time training, noise of severity 3"
    assert (noise.pretrained, noise.values) == (
        (numbers["accuracy_noise"],),
        (numbers["accuracy_noise_frozen"],),
    )
    assert noise.images == 24
    with (tmp_path / "test_time.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["condition"], row["step"]) for row in rows[:3]] == [
        ("noise", "0"),
        ("noise", "1"),
        ("jpeg", "0"),
    ]


def test_without_labels_it_is_skipped(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({"train": {"": 4}, "test": {"": 4}})
    found = protocol.run(make_params(), shards, tiny_encoder, HERE, tmp_path)
    assert "have no labels" in (found.skipped or "")


def test_an_encoder_without_a_decoder_is_skipped(
    digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    encoder = load_encoder(tiny_encoder).encoder
    folder = tmp_path / "encoder"
    save_encoder_artifact(folder, encoder, STATISTICS, {}, resize=1.0)
    found = protocol.run(make_params(), digit_shards, folder, HERE, tmp_path)
    assert "came without a decoder" in (found.skipped or "")
    assert not found.numbers


@pytest.mark.parametrize("method", ["supervised", "convolutional"])
def test_methods_that_hide_nothing_are_skipped(
    digit_shards, make_params, tmp_path, method: str
) -> None:
    params = make_params()
    model = build_model(params.model.model_copy(update={"method": method}), 1, 10, seed=0)
    save_artifact(tmp_path / "model", model, STATISTICS, {})
    found = protocol.run(params, digit_shards, tmp_path / "model", HERE, tmp_path)
    assert f"method {method}" in (found.skipped or "")


@pytest.mark.parametrize("method", ["mae", "simmim", "denoising", "autoencoder"])
def test_methods_of_reconstruction_are_not(make_params, tmp_path, method: str) -> None:
    model = build_model(make_params().model.model_copy(update={"method": method}), 1, 10, seed=0)
    save_artifact(tmp_path / "model", model, STATISTICS, {})
    assert why_not_adaptable(load_encoder(tmp_path / "model").info) is None
