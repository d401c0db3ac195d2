from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from mae.errors import CheckpointError, ParamsError
from mae.model.losses import Loss, build_loss
from mae.model.perceptual import load_network
from mae.params import LossParams, TargetParams
from tests.model.samples import noise

NETWORK = "alexnet"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """An AlexNet of random weights: small to compute, and with pooling between its stages."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.alexnet(weights=None).eval()


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "features.pt"
    torch.save({k: v for k, v in network.state_dict().items() if k.startswith("features")}, path)
    return path


def perceptual(weights: Path, channels: int = 3) -> Loss:
    params = LossParams(kind="perceptual", network=NETWORK, weights=str(weights))
    return build_loss(params, TargetParams(kind="pixels"), channels, (8, 8))


def oracle(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """The distance by its definition, with the features caught by hooks before every pooling."""

    def maps(images: Tensor) -> list[Tensor]:
        caught: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].clone()))
            for layer in network.features
            if isinstance(layer, nn.MaxPool2d)
        ]
        network.features(images)
        for hook in hooks:
            hook.remove()
        return caught

    with torch.no_grad():
        pairs = list(zip(maps(a), maps(b), strict=True))
    unit = [[nn.functional.normalize(x.double(), dim=1) for x in pair] for pair in pairs]
    distances = [(x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in unit]
    return torch.stack(distances).mean(dim=0)


def test_distance_against_its_definition(network: nn.Module, weights: Path) -> None:
    a, b = noise(2, 3, 64, 96), noise(2, 3, 64, 96, seed=1)
    loss = perceptual(weights)
    assert loss.on_images
    torch.testing.assert_close(loss(a, b).double(), oracle(network, a, b), rtol=1e-4, atol=1e-6)
    assert loss.mean(a, b).item() == pytest.approx(oracle(network, a, b).mean().item(), rel=1e-4)
    assert loss.mean(a, a).item() == 0


def test_grey_images_are_shown_as_grey(network: nn.Module, weights: Path) -> None:
    a, b = noise(1, 1, 64, 64), noise(1, 1, 64, 64, seed=1)
    expected = oracle(network, a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    torch.testing.assert_close(
        perceptual(weights, channels=1)(a, b).double(), expected, rtol=1e-4, atol=1e-6
    )


def test_other_channels_are_refused(weights: Path) -> None:
    with pytest.raises(ParamsError, match="1 or 3 channels"):
        perceptual(weights, channels=4)


def test_the_scale_does_not_follow_the_share_that_counts(weights: Path) -> None:
    """Images of one texture, another in half or in all of them: what counts is equally wrong."""
    loss = perceptual(weights)
    texture, other = noise(1, 3, 16, 16).repeat(1, 1, 8, 8), noise(1, 3, 16, 16, seed=1)
    other = other.repeat(1, 1, 8, 8)
    half = torch.zeros(1, 1, 128, 128)
    half[..., 64:] = 1
    mixed = torch.where(half.bool(), other, texture)
    whole, part = loss.mean(other, texture), loss.mean(mixed, texture, half)
    assert part.item() == pytest.approx(whole.item(), rel=0.25)
    assert loss.mean(mixed, texture).item() < 0.75 * whole.item()


def test_images_without_anything_that_counts_are_a_0_in_the_mean(weights: Path) -> None:
    loss = perceptual(weights)
    a, b = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    counts = torch.ones(2, 1, 64, 64)
    counts[1] = 0
    torch.testing.assert_close(2 * loss.mean(a, b, counts), loss.mean(a[:1], b[:1]))


def test_gradients_reach_the_prediction_alone(weights: Path) -> None:
    loss = perceptual(weights).train()
    a = noise(1, 3, 64, 64).requires_grad_()
    loss.mean(a, torch.zeros(1, 3, 64, 64)).backward()
    assert torch.isfinite(a.grad).all() and a.grad.abs().sum() > 0
    assert not list(loss.parameters()) and not loss.state_dict()
    assert not any(module.training for module in loss.network.modules())


def test_small_images_are_compared_on_fewer_maps(weights: Path) -> None:
    network = load_network(NETWORK, weights)
    assert len(network(noise(1, 3, 64, 64))) == 3
    assert len(network(noise(1, 3, 16, 16))) == 2
    assert torch.isfinite(perceptual(weights)(noise(1, 3, 16, 16), noise(1, 3, 16, 16))).all()


def test_it_is_float32_under_autocast(weights: Path) -> None:
    loss = perceptual(weights)
    a, b = noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(a, b)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss(a, b))


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_other_networks_and_safetensors(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = torchvision.models.get_model(name, weights=None).eval()
    trunk = {k: v for k, v in whole.state_dict().items() if not k.startswith(("fc", "classifier"))}
    save_file(trunk, tmp_path / "weights.safetensors")
    images = noise(1, 3, 64, 64)
    maps = load_network(name, tmp_path / "weights.safetensors")(images)
    sides = {"resnet18": [16, 8, 4, 2], "vgg11": [64, 32, 16, 8, 4]}[name]
    assert [found.shape[-1] for found in maps] == sides
    if name == "resnet18":
        last = whole.layer4(whole.layer3(whole.layer2(maps[0])))
    else:
        last = whole.features[:-1](images)
    torch.testing.assert_close(maps[-1], last)


def test_what_cannot_be_used_is_refused(network: nn.Module, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no network 'vgg61'"):
        load_network("vgg61", weights)
    with pytest.raises(ParamsError, match="no stages"):
        load_network("vit_b_16", weights)
    with pytest.raises(ParamsError, match=r"loss\.weights"):
        load_network(NETWORK, None)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_network(NETWORK, tmp_path / "absent.pt")
    (tmp_path / "cut.pt").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load_network(NETWORK, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="does not hold the weights of vgg11"):
        load_network("vgg11", weights)
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="no weights"):
        load_network(NETWORK, tmp_path / "empty.pt")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_the_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Malicious(tmp_path / "was_here")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_network(NETWORK, tmp_path / "bad.pt")
    assert not (tmp_path / "was_here").exists()
