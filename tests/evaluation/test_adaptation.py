"""Adaptation against a plain loop: one image after another, torch.optim.SGD, plain autograd."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mae.data.loading.batch import Batch
from mae.evaluation.adaptation import Adaptation
from mae.hashing import random_bits
from mae.model.autoencoder import Autoencoder, build_autoencoder
from mae.model.linear import Linear
from mae.model.methods import resolve_method
from mae.params.evaluation import TestTimeParams
from mae.pixels import PixelNormalizer, PixelStatistics
from mae.training.objective import Objective
from tests.model.samples import model_params, noise

CPU = torch.device("cpu")
SEED = 3
STATISTICS = PixelStatistics((0.4, 0.5), (0.2, 0.3))
IDS = torch.tensor([7, 1 << 60, -4])
FITTED = {"tokens": {"codebook": noise(9, 32)}}


@pytest.fixture(autouse=True)
def in_full_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "bf16" not in request.node.name:
        monkeypatch.setattr("mae.evaluation.adaptation.resolve_precision", lambda *_: "fp32")


def wanted(**changes: Any) -> TestTimeParams:
    values: dict[str, Any] = {
        "images": 3,
        "steps": 3,
        "views": 4,
        "lr": 0.1,
        "online": False,
        "corruptions": ["noise"],
        "severity": 3,
        "feature": "mean",
    }
    return TestTimeParams.model_validate(values | changes)


def made(**changes: Any) -> Autoencoder:
    """16 x 24 pixels of two channels in 24 patches, its weights spread as after some training."""
    params = resolve_method(model_params(**changes))
    model = build_autoencoder(params, 2, SEED, FITTED.get(params.target.kind))
    with torch.no_grad():
        for at, value in enumerate(model.encoder.parameters()):
            value.add_(noise(*value.shape, seed=at), alpha=0.05)
    return model


def stored(images: int = 3, height: int = 16, width: int = 24, **kwargs: Any) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    shape = (images, 2, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, **kwargs)


def one_by_one(model: Autoencoder, images: Tensor, params: TestTimeParams, views: int) -> Tensor:
    features = []
    for image, number in zip(images, IDS, strict=True):
        own = copy.deepcopy(model).eval()
        objective = Objective(own, STATISTICS)
        optimizer = torch.optim.SGD(own.encoder.parameters(), lr=params.lr)
        for step in range(params.steps):
            ids = random_bits(SEED, "test-time:view", step, number[None], views)[0]
            batch = Batch(image[None].repeat(views, 1, 1, 1), ids, torch.full_like(ids, -1))
            optimizer.zero_grad()
            objective(own, batch, SEED, step).backward()
            optimizer.step()
        with torch.no_grad():
            encoded = own.encoder(PixelNormalizer(STATISTICS)(image[None]))
            features.append(getattr(encoded, params.feature)[0])
    return torch.stack(features)


def adapted(adaptation: Adaptation, images: Tensor, ids: Tensor) -> Tensor:
    weights = adaptation.pretrained(len(images))
    adaptation.adapt(weights, images, ids)
    return adaptation.features(weights, images)


def frozen(adaptation: Adaptation, images: Tensor) -> Tensor:
    return adaptation.features(adaptation.pretrained(len(images)), images)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "simmim"},
        {"method": "denoising"},
        {"method": "autoencoder", "positions": "learned"},
        {"pad": True, "height": 14, "target": {"kind": "pixels"}},
        {"mask": {"kind": "block", "ratio": 0.5, "no_data": 0}, "target": {"kind": "pixels"}},
        {"target": {"kind": "tokens", "codes": 9}},
        {"target": {"kind": "pixels"}, "loss": {"kind": "frequency", "over": "discounted"}},
        {"decoder": {"width": 16, "depth": 2, "heads": 2, "positions": "shared"}},
    ],
    ids=lambda changes: "-".join(changes) or "mae",
)
@pytest.mark.parametrize("feature", ["cls", "mean"])
def test_side_by_side_is_one_by_one(changes: dict[str, Any], feature: str) -> None:
    model, params = made(**changes), wanted(feature=feature)
    images = stored(height=model.params.height)
    images[:, :, :4, :4] = 0  # a patch without data, where that is asked for
    adaptation = Adaptation(model, STATISTICS, params, SEED, CPU)
    found = adapted(adaptation, images, IDS)
    expected = one_by_one(model, images, params, adaptation.views)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    moved = (found - frozen(adaptation, images)).abs().max()
    assert moved > 100 * (found - expected).abs().max()


def test_uint16_images_are_adapted_to() -> None:
    statistics = PixelStatistics((0.4, 0.5), (0.2, 0.3), bit_depth=16)
    deep = Adaptation(made(), statistics, wanted(), SEED, CPU)
    shallow = Adaptation(made(), STATISTICS, wanted(), SEED, CPU)
    images = (stored().int() * 257).to(torch.uint16)
    torch.testing.assert_close(
        adapted(deep, images, IDS), adapted(shallow, stored(), IDS), rtol=1e-3, atol=1e-4
    )


def test_a_tiny_rate_changes_nothing() -> None:
    model = made()
    adaptation = Adaptation(model, STATISTICS, wanted(lr=1e-12), SEED, CPU)
    with torch.no_grad():
        expected = model.eval().encoder(PixelNormalizer(STATISTICS)(stored())).mean
    torch.testing.assert_close(adapted(adaptation, stored(), IDS), expected, rtol=1e-5, atol=1e-6)


def test_reconstruction_gets_better() -> None:
    adaptation = Adaptation(made(), STATISTICS, wanted(steps=12, views=24), SEED, CPU)
    losses = adaptation.adapt(adaptation.pretrained(3), stored(), IDS)
    assert losses.shape == (12, 3)
    assert (losses[-3:].mean(dim=0) < 0.98 * losses[:3].mean(dim=0)).all()


def test_images_do_not_learn_from_each_other() -> None:
    adaptation = Adaptation(made(), STATISTICS, wanted(), SEED, CPU)
    together = adapted(adaptation, stored(), IDS)
    turned = adapted(adaptation, stored().flip(0), IDS.flip(0)).flip(0)
    alone = [adapted(adaptation, stored()[[at]], IDS[[at]])[0] for at in range(3)]
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(alone), together, rtol=1e-4, atol=1e-5)


def test_what_was_learned_on_one_image_can_be_kept_for_the_next() -> None:
    adaptation = Adaptation(made(), STATISTICS, wanted(), SEED, CPU)
    ends = []
    for order in ([0, 1], [1, 0]):
        weights = adaptation.pretrained(1)
        for at in order:
            adaptation.adapt(weights, stored()[[at]], IDS[[at]])
        ends.append(adaptation.features(weights, stored()[:1]))
    assert (ends[0] - ends[1]).abs().max() > 1e-4


def test_masks_are_functions_of_seed_image_step_and_view() -> None:
    def losses(seed: int, ids: Tensor, **changes: Any) -> Tensor:
        adaptation = Adaptation(made(), STATISTICS, wanted(lr=1e-12, **changes), seed, CPU)
        images = stored()[[0]].expand(len(ids), -1, -1, -1)
        return adaptation.adapt(adaptation.pretrained(len(ids)), images, ids)

    one = losses(SEED, IDS, views=1)
    assert torch.equal(one, losses(SEED, IDS, views=1))
    # The same image and weights all along: only the masks make a difference.
    assert len(one.unique()) == one.numel()
    assert len(torch.cat([one, losses(SEED + 1, IDS, views=1)]).unique()) == 2 * one.numel()
    assert losses(SEED, IDS, views=32).std() < one.std() / 2


def test_without_anything_drawn_one_view_is_all() -> None:
    assert Adaptation(made(method="autoencoder"), STATISTICS, wanted(), SEED, CPU).views == 1
    assert Adaptation(made(method="denoising"), STATISTICS, wanted(), SEED, CPU).views == 4


def test_the_model_it_was_given_stays_as_it_is() -> None:
    model = made().train()
    before = copy.deepcopy(model.state_dict())
    adapted(Adaptation(model, STATISTICS, wanted(), SEED, CPU), stored(), IDS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(value.requires_grad for value in model.parameters())
    assert isinstance(model.encoder.patch_embed, Linear)


def test_bf16_is_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(
            "mae.evaluation.adaptation.resolve_precision", lambda *_, now=precision: now
        )
        adaptation = Adaptation(made(), STATISTICS, wanted(), SEED, CPU)
        assert adaptation.precision == precision
        found.append(adapted(adaptation, stored(), IDS))
    still = frozen(adaptation, stored())
    assert (found[0] - found[1]).norm() < 0.1 * (found[0] - still).norm()


def test_large_encoders_go_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = Adaptation(made(), STATISTICS, wanted(), SEED, CPU)
    assert adaptation.at_once == 32
    monkeypatch.setattr("mae.evaluation.adaptation._MEMORY", 1000)
    assert adaptation.at_once == 1
