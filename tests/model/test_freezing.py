import pytest
import torch

from mae.errors import ParamsError
from mae.model.encoder import Encoder
from mae.model.freezing import freeze_first, last_blocks, learn_only, still_where_frozen
from tests.model.test_encoder import architecture


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(architecture(depth=3, positions="learned"))


def names(encoder: Encoder, blocks: float) -> set[str]:
    chosen = {id(p) for p in last_blocks(encoder, blocks)}
    return {name for name, p in encoder.named_parameters() if id(p) in chosen}


def block(encoder: Encoder, index: int) -> set[str]:
    return {name for name, _ in encoder.named_parameters() if name.startswith(f"blocks.{index}.")}


NORM = {"norm.weight", "norm.bias"}


def test_whole_and_half_blocks(encoder: Encoder) -> None:
    half = {name for name in block(encoder, 2) if ".mlp." in name or ".norm2." in name}
    assert len(half) == 6
    assert names(encoder, 0) == set()
    assert names(encoder, 0.5) == half | NORM
    assert names(encoder, 1) == block(encoder, 2) | NORM
    assert names(encoder, 3) == block(encoder, 0) | block(encoder, 1) | block(encoder, 2) | NORM
    below = {name.replace("blocks.2", "blocks.1") for name in half}
    assert names(encoder, 1.5) == block(encoder, 2) | below | NORM


@pytest.mark.parametrize("blocks", [-1, 0.3, 3.5, 4])
def test_blocks_that_do_not_exist(encoder: Encoder, blocks: float) -> None:
    with pytest.raises(ParamsError, match="the encoder has 3"):
        last_blocks(encoder, blocks)


def test_only_the_chosen_learn(encoder: Encoder) -> None:
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    learn_only(encoder, last_blocks(encoder, 0.5))
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    encoder(images).mean.square().sum().backward()
    optimizer.step()
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= names(encoder, 0.5)
    assert {name.split(".")[2] for name in moved if name.startswith("blocks")} == {"mlp", "norm2"}


def test_freezing_the_first_blocks(encoder: Encoder) -> None:
    freeze_first(encoder, 1)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    stem = {"patch_embed.weight", "patch_embed.bias", "cls_token", "positions"}
    assert frozen == stem | block(encoder, 0)
    with pytest.raises(ParamsError, match="4 blocks cannot be frozen: the encoder has 3"):
        freeze_first(encoder, 4)


def test_drop_path_stays_where_something_learns(encoder: Encoder) -> None:
    encoder.set_drop_path(0.4)
    learn_only(encoder, last_blocks(encoder, 1.5))
    still_where_frozen(encoder)
    rates = [getattr(one.drop_path1, "drop_prob", 0.0) for one in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
