import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mae.errors import DataError, ParamsError
from mae.evaluation import linear_probe
from mae.evaluation.features import FeatureBatch
from mae.evaluation.linear_probe import LinearProbe, fit_and_test

CPU = torch.device("cpu")


def separable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of three classes, apart in the first two of eight, of wildly unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    features = torch.randn(count, 8, generator=generator) * 0.1
    features[:, :2] += corners[labels]
    return features * torch.logspace(-1, 3, 8), labels


def test_the_head_sees_normalised_features_and_learns_no_scale() -> None:
    task = LinearProbe(8, 3, seed=0).train()
    features, labels = separable(60, 0)
    normalised = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    expected = nn.functional.cross_entropy(task.head(normalised), labels)
    torch.testing.assert_close(task(FeatureBatch(features, labels), 0)[0], expected)
    assert {name for name, _ in task.named_parameters()} == {"head.weight", "head.bias"}


def test_the_initial_head_is_small_and_a_function_of_the_seed() -> None:
    one, same, other = (LinearProbe(512, 100, seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_learns_what_a_line_can_tell_apart(make_params: Callable) -> None:
    params = make_params(linear_probe={"blr": 20.0, "epochs": 100})
    accuracy = fit_and_test(
        params, separable(300, 0), separable(90, 1), classes=3, seed=0, device=CPU
    )
    assert accuracy.top1 > 0.95


def test_measures_digits_the_same_each_time(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params(linear_probe={"seeds": 2, "epochs": 5, "batch": 64, "blr": 5.0})
    first = linear_probe.run(params, digit_shards, tiny_encoder, CPU)
    assert first == linear_probe.run(params, digit_shards, tiny_encoder, CPU)
    runs = first.detail["pretrained"]
    assert len(runs) == 2 and runs[0] != runs[1]
    assert first.numbers["accuracy"] == pytest.approx(sum(run["top1"] for run in runs) / 2)
    assert first.numbers["accuracy_std"] == pytest.approx(
        abs(runs[0]["top1"] - runs[1]["top1"]) / 2**0.5
    )
    assert {"accuracy_random", "balanced_accuracy", "balanced_accuracy_random_std"} <= set(
        first.numbers
    )


def test_a_single_seed_has_no_deviation(digit_shards, tiny_encoder, make_params) -> None:
    params = make_params(linear_probe={"seeds": 1, "epochs": 1})
    assert linear_probe.run(params, digit_shards, tiny_encoder, CPU).numbers["accuracy_std"] == 0


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = linear_probe.run(make_params(), shards, tiny_encoder, CPU)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")
    assert dataclasses.asdict(outcome)["protocol"] == "linear_probe"


def test_other_channels_are_refused(digit_shards, make_encoder, make_params) -> None:
    with pytest.raises(DataError, match="3 channels"):
        linear_probe.run(make_params(), digit_shards, make_encoder(3, 8), CPU)


def test_a_batch_of_one_is_refused(digit_shards, tiny_encoder, make_params) -> None:
    with pytest.raises(ParamsError, match="batch normalisation"):
        linear_probe.run(make_params(linear_probe={"batch": 1}), digit_shards, tiny_encoder, CPU)
