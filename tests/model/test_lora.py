import copy

import peft
import pytest
import torch
from torch import Tensor, nn

from mae.errors import ParamsError
from mae.model.encoder import Encoder
from mae.model.lora import LowRankLinear, add_adapters, merge
from tests.model.test_encoder import architecture

RANK, ALPHA = 4, 6.0


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(architecture(depth=2)).eval()


def images() -> Tensor:
    return torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def layers_of(encoder: Encoder) -> dict[str, LowRankLinear]:
    return {n: m for n, m in encoder.named_modules() if isinstance(m, LowRankLinear)}


def disturb(parameters: list[nn.Parameter]) -> None:
    """Put learned-looking numbers into adapters that start at zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_an_adapted_encoder_begins_as_it_was_to_the_bit(encoder: Encoder) -> None:
    before = encoder(images())
    add_adapters(encoder, RANK, ALPHA, seed=0)
    after = encoder(images())
    assert torch.equal(before.cls, after.cls) and torch.equal(before.mean, after.mean)
    assert set(layers_of(encoder)) == {
        f"blocks.{block}.attn.{name}" for block in (0, 1) for name in ("qkv", "proj")
    }


def test_what_is_returned_is_all_that_the_adapters_have(encoder: Encoder) -> None:
    before = {id(parameter) for parameter in encoder.parameters()}
    added = add_adapters(encoder, RANK, ALPHA, seed=0)
    assert {id(p) for p in encoder.parameters()} - before == {id(p) for p in added}
    width = encoder.dim
    assert sum(p.numel() for p in added) == 2 * RANK * ((width + 3 * width) + (width + width))


def test_the_start_is_a_function_of_the_seed(encoder: Encoder) -> None:
    added = [add_adapters(copy.deepcopy(encoder), RANK, ALPHA, seed) for seed in (0, 0, 1)]
    pairs = list(zip(*added, strict=True))
    assert all(torch.equal(first, again) for first, again, _ in pairs)
    assert not all(torch.equal(first, other) for first, _, other in pairs)


def peft_of(encoder: Encoder) -> nn.Module:
    """The same adapters by the PEFT library, on a copy of an encoder without any."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["qkv", "proj"], bias="none"
    )
    return peft.get_peft_model(copy.deepcopy(encoder), config)


def test_forward_gradients_and_merged_weights_are_those_of_peft(encoder: Encoder) -> None:
    encoder.double()
    theirs = peft_of(encoder)
    disturb(add_adapters(encoder, RANK, ALPHA, seed=0))
    ours = layers_of(encoder)
    counterparts = {name: theirs.base_model.model.get_submodule(name) for name in ours}
    with torch.no_grad():
        for name, layer in ours.items():
            counterparts[name].lora_A["default"].weight.copy_(layer.down.weight)
            counterparts[name].lora_B["default"].weight.copy_(layer.up.weight)
    our_features, their_features = encoder(images().double()), theirs(images().double())
    torch.testing.assert_close(our_features.mean, their_features.mean)
    our_features.mean.square().sum().backward()
    their_features.mean.square().sum().backward()
    for name, layer in ours.items():
        other = counterparts[name]
        torch.testing.assert_close(layer.down.weight.grad, other.lora_A["default"].weight.grad)
        torch.testing.assert_close(layer.up.weight.grad, other.lora_B["default"].weight.grad)
    merge(encoder)
    plain = theirs.merge_and_unload().state_dict()
    assert set(plain) == set(encoder.state_dict())
    for name, weight in encoder.state_dict().items():
        torch.testing.assert_close(weight, plain[name])


def test_merged_it_is_a_plain_encoder_that_answers_the_same(encoder: Encoder) -> None:
    plain = copy.deepcopy(encoder)
    disturb(add_adapters(encoder, RANK, ALPHA, seed=0))
    adapted = encoder(images())
    merge(encoder)
    assert not layers_of(encoder)
    torch.testing.assert_close(encoder(images()).mean, adapted.mean)
    assert not torch.allclose(plain(images()).mean, adapted.mean)
    plain.load_state_dict(encoder.state_dict())  # the names are as before
    assert torch.equal(plain(images()).mean, encoder(images()).mean)


def test_adapters_are_put_on_once_and_stay_thin(encoder: Encoder) -> None:
    with pytest.raises(ParamsError, match="rank 1000 exceeds the encoder's width"):
        add_adapters(encoder, 1000, ALPHA, seed=0)
    add_adapters(encoder, RANK, ALPHA, seed=0)
    with pytest.raises(ValueError, match="adapters already"):
        add_adapters(encoder, RANK, ALPHA, seed=0)
