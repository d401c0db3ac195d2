import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mae.errors import DataError, ParamsError
from mae.evaluation import linear_probe
from mae.evaluation.arms import frozen_arms
from mae.evaluation.feature_loader import FeatureBatch, FeatureLoader
from mae.evaluation.labelled import train_and_test
from mae.evaluation.linear_probe import FrozenBatchNorm, Layer, LinearProbe, Prober
from mae.evaluation.scores import measure_scores
from mae.model.artifact import load_encoder
from mae.params import Params
from mae.training.devices import Place
from mae.training.lars import LARS
from mae.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
HERE = Place(torch.device("cpu"))


def separable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of three classes, apart in the first two of eight, of wildly unequal scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    features = torch.randn(count, 8, generator=generator) * 0.1
    features[:, :2] += corners[labels]
    return features * torch.logspace(-1, 3, 8), labels


def probe_of(layers: list[Layer], dim: int = 8, classes: int = 3) -> LinearProbe:
    return LinearProbe(lambda batch: batch.features, dim, classes, HERE, layers)


def learned(params: Params, blr: float, layers: list[Layer], seed: int = 0) -> LinearProbe:
    task, optim = probe_of(layers), params.evaluate.linear_probe.optim(blr)
    features, labels = separable(300, 0)
    rows = torch.arange(300)
    Trainer(
        task,
        FeatureLoader(features, labels, rows, optim, HERE, seed=seed, purpose="test"),
        optim,
        seed=seed,
        place=HERE,
        runtime=params.runtime,
        make_optimizer=LARS,
    ).run()
    return task


def test_the_norm_equals_torchs() -> None:
    ours, theirs = FrozenBatchNorm(8, HERE), nn.BatchNorm1d(8, 1e-6, None, affine=False)
    for seed in range(3):
        features, _ = separable(32, seed)
        torch.testing.assert_close(ours(features), theirs(features), rtol=1e-4, atol=1e-4)
    features, _ = separable(5, 9)
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))
    assert not list(ours.parameters())


def test_the_loss_is_of_a_layer_on_normalised_features_and_nothing_else_learns() -> None:
    task = probe_of([Layer(0)]).train()
    features, labels = separable(60, 0)
    normalised = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    expected = nn.functional.cross_entropy(task.heads[0](normalised), labels)
    torch.testing.assert_close(task(FeatureBatch(features, labels), 0)[0], expected)
    assert {name for name, _ in task.named_parameters()} == {"heads.0.weight", "heads.0.bias"}


def test_the_initial_layer_is_small_and_a_function_of_the_seed() -> None:
    task = probe_of([Layer(0), Layer(0, 2.0), Layer(1)], dim=512, classes=100)
    one, same, other = (head.weight for head in task.heads)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_layers_side_by_side_are_what_each_is_alone(make_params: Callable[..., Params]) -> None:
    params = make_params(linear_probe={"epochs": 3, "batch": 64})
    together = learned(params, 5.0, [Layer(0), Layer(0, 4.0), Layer(7)])
    for head, (blr, layer) in zip(
        together.heads, [(5.0, Layer(0)), (20.0, Layer(0)), (5.0, Layer(7))], strict=True
    ):
        alone = learned(params, blr, [layer])
        torch.testing.assert_close(head.weight, alone.heads[0].weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(head.bias, alone.heads[0].bias, rtol=1e-4, atol=1e-6)


def test_learns_what_a_line_can_tell_apart(make_params: Callable[..., Params]) -> None:
    task = learned(make_params(linear_probe={"epochs": 100}), 20.0, [Layer(0)])
    features, labels = separable(90, 1)
    assert measure_scores(task.logits(features)[0], labels).top1 > 0.95


@pytest.fixture(scope="module")
def quick(make_params) -> Params:
    return make_params(
        linear_probe={"seeds": 2, "epochs": 4, "batch": 64, "blr": [20.0, 1e-4, 5.0]}
    )


def test_measures_digits_the_same_each_time(digit_shards, tiny_encoder, quick, tmp_path) -> None:
    first = linear_probe.run(quick, digit_shards, tiny_encoder, HERE, tmp_path)
    assert first == linear_probe.run(quick, digit_shards, tiny_encoder, HERE, tmp_path)
    ours = first.detail["pretrained"]
    one, other = (run["top1"] for run in ours["runs"])
    assert ours["runs"][0] != ours["runs"][1]
    assert first.numbers["accuracy"] == pytest.approx((one + other) / 2)
    assert first.numbers["accuracy_std"] == pytest.approx(abs(one - other) / 2**0.5)
    assert {"accuracy_random", "balanced_accuracy", "balanced_accuracy_random_std"} <= set(
        first.numbers
    )
    (compared,) = first.comparisons
    assert compared.pretrained == (one, other) and compared.baseline == "random encoder"
    assert compared.images == 120 and first.expected is None


def test_the_rate_is_the_best_on_minival(digit_shards, tiny_encoder, quick, tmp_path) -> None:
    outcome = linear_probe.run(quick, digit_shards, tiny_encoder, HERE, tmp_path)
    for arm in ("pretrained", "random"):
        reached = outcome.detail[arm]["minival_accuracy"]
        assert set(reached) == {"0.0001", "5", "20"}
        best = [float(rate) for rate, share in reached.items() if share == max(reached.values())]
        assert outcome.detail[arm]["blr"] == min(best)


def test_a_single_seed_and_rate(digit_shards, tiny_encoder, make_params, tmp_path) -> None:
    params = make_params(linear_probe={"seeds": 1, "epochs": 1, "blr": [5.0]})
    outcome = linear_probe.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    assert outcome.numbers["accuracy_std"] == 0
    assert outcome.detail["pretrained"]["minival_accuracy"] == {}
    assert outcome.detail["pretrained"]["interval"] is None


CROPS = {"crop_area": [0.5, 1.0], "crop_aspect": [0.75, 1.333], "flip": True}


def test_crops_reach_the_layer_and_leave_the_encoder_alone(
    digit_shards, tiny_encoder, make_params
) -> None:
    settings = {"seeds": 1, "epochs": 3, "batch": 64, "blr": [5.0, 20.0]}
    params = make_params(linear_probe={**settings, "augment": CROPS})
    train, test = train_and_test(digit_shards)
    classes = tuple(map(str, range(10)))
    arm = frozen_arms(params, load_encoder(tiny_encoder), pixels=False)["pretrained"]
    assert arm.encoder is not None
    before = {name: value.clone() for name, value in arm.encoder.state_dict().items()}
    cropped = Prober(params, train, test, classes, arm, HERE).probe()
    assert all(torch.equal(value, before[name]) for name, value in arm.encoder.state_dict().items())
    assert not arm.encoder.training
    assert cropped == Prober(params, train, test, classes, arm, HERE).probe()
    fixed = make_params(linear_probe=settings)
    assert cropped != Prober(fixed, train, test, classes, arm, HERE).probe()


PROGRAM = """
import json, sys
from pathlib import Path
import torch
import mae.evaluation.feature_cache as feature_cache
from mae.evaluation import linear_probe
from mae.params import parse_params
from mae.training.devices import joined
shards, encoder, folder, params = sys.argv[1:]
feature_cache.FOLDER = Path(folder) / "features"
with joined("cpu") as place:
    outcome = linear_probe.run(
        parse_params(json.loads(params)), Path(shards), Path(encoder), place, Path(folder)
    )
    if place.leads:
        told = {"numbers": outcome.numbers, "detail": outcome.detail}
        Path(folder, "told.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("augment", [None, CROPS], ids=["features", "crops"])
def test_two_processes_measure_what_one_does(
    augment, digit_shards, tiny_encoder, make_params, tmp_path
) -> None:
    settings = {"seeds": 2, "epochs": 3, "batch": 64, "blr": [5.0, 20.0], "augment": augment}
    params = make_params(linear_probe=settings)
    content = json.dumps(params.model_dump(mode="json", by_alias=True))
    one = linear_probe.run(params, digit_shards, tiny_encoder, HERE, tmp_path)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, str(program), str(digit_shards), str(tiny_encoder), str(tmp_path), content],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    two = json.loads((tmp_path / "told.json").read_text())
    assert one.detail["pretrained"]["blr"] == two["detail"]["pretrained"]["blr"]
    # Sums in another order: an image in 240 may lie on a border.
    for name in ("accuracy", "accuracy_random", "balanced_accuracy"):
        assert two["numbers"][name] == pytest.approx(one.numbers[name], abs=1.01 / 240)


def test_no_labels_is_skipped_in_words(make_shards, tiny_encoder, make_params, tmp_path) -> None:
    shards = make_shards({split: {"": 3} for split in ("train", "val", "test")})
    outcome = linear_probe.run(make_params(), shards, tiny_encoder, HERE, tmp_path)
    assert outcome.numbers == {} and "no labels" in (outcome.skipped or "")
    assert dataclasses.asdict(outcome)["protocol"] == "linear_probe"


def test_other_channels_are_refused(digit_shards, make_encoder, make_params, tmp_path) -> None:
    with pytest.raises(DataError, match="3 channels"):
        linear_probe.run(make_params(), digit_shards, make_encoder(3, 8), HERE, tmp_path)


def test_a_batch_of_one_is_refused(make_params) -> None:
    with pytest.raises(ParamsError, match="batch"):
        make_params(linear_probe={"batch": 1})
