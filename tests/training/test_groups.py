import pytest
import torch
from torch import Tensor, nn

from mae.model.encoder import Architecture, Encoder
from mae.model.freezing import freeze_first, learn_only
from mae.model.heads import Classifier
from mae.model.lora import add_adapters
from mae.training.groups import decay_groups, layer_decay_groups

ARCHITECTURE = Architecture(1, 16, 16, (8, 8), dim=16, depth=3, heads=2, mlp_ratio=2.0)
DECAY = 0.5


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(Encoder(ARCHITECTURE), 4, "mean", init_std=0.02, seed=0)


def scales(groups: list) -> dict[int, float]:
    return {id(p): group["lr_scale"] for group in groups for p in group["params"]}


def decays(groups: list) -> dict[int, float]:
    return {id(p): group["weight_decay"] for group in groups for p in group["params"]}


def test_the_rate_falls_with_each_layer_away_from_the_head(classifier: Classifier) -> None:
    encoder = classifier.encoder
    found = scales(layer_decay_groups(classifier, encoder, 0.05, DECAY))
    expected: list[tuple[list[Tensor], float]] = [
        ([encoder.cls_token, *encoder.patch_embed.parameters()], DECAY**4),
        (list(encoder.blocks[0].parameters()), DECAY**3),
        (list(encoder.blocks[1].parameters()), DECAY**2),
        (list(encoder.blocks[2].parameters()), DECAY**1),
        ([*encoder.norm.parameters(), *classifier.head.parameters()], 1.0),
    ]
    for parameters, scale in expected:
        assert {found.pop(id(parameter)) for parameter in parameters} == {scale}
    assert found == {}


def test_every_parameter_is_in_one_group(classifier: Classifier) -> None:
    for groups in (
        decay_groups(classifier, 0.05),
        layer_decay_groups(classifier, classifier.encoder, 0.05, DECAY),
    ):
        listed = [id(p) for group in groups for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in classifier.parameters())


def test_only_matrices_decay(classifier: Classifier) -> None:
    found = decays(layer_decay_groups(classifier, classifier.encoder, 0.05, DECAY))
    assert found == decays(decay_groups(classifier, 0.05))
    assert found[id(classifier.encoder.cls_token)] == 0.0  # (1, 1, D) is a vector
    for module in classifier.modules():
        if isinstance(module, nn.Linear):
            assert (found[id(module.weight)], found[id(module.bias)]) == (0.05, 0.0)
        elif isinstance(module, nn.LayerNorm):
            assert (found[id(module.weight)], found[id(module.bias)]) == (0.0, 0.0)


def test_without_layer_decay_all_learn_at_the_full_rate(classifier: Classifier) -> None:
    assert set(scales(layer_decay_groups(classifier, classifier.encoder, 0.05, 1.0)).values()) == {
        1.0
    }


def test_names_do_not_matter() -> None:
    encoder = Encoder(ARCHITECTURE)
    wrapped = nn.Sequential(nn.Sequential(encoder), nn.Linear(16, 4))
    found = scales(layer_decay_groups(wrapped, encoder, 0.0, DECAY))
    assert found[id(encoder.blocks[0].attn.qkv.weight)] == DECAY**3


def test_an_encoder_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no part of the module"):
        layer_decay_groups(nn.Linear(4, 4), Encoder(ARCHITECTURE), 0.05, DECAY)


def test_what_is_frozen_is_left_out_and_the_rest_keeps_its_rate(classifier: Classifier) -> None:
    freeze_first(classifier.encoder, 1)
    found = scales(layer_decay_groups(classifier, classifier.encoder, 0.05, DECAY))
    blocks = classifier.encoder.blocks
    learning = [*blocks[1:].parameters(), *classifier.encoder.norm.parameters()]
    assert set(found) == {id(p) for p in [*learning, *classifier.head.parameters()]}
    assert {found[id(p)] for p in blocks[1].parameters()} == {DECAY**2}
    assert {found[id(p)] for p in blocks[2].parameters()} == {DECAY}


def test_layer_decay_that_would_slow_nothing_is_an_error(classifier: Classifier) -> None:
    classifier.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="no layer of the encoder learns"):
        layer_decay_groups(classifier, classifier.encoder, 0.05, DECAY)
    listed = scales(decay_groups(classifier, 0.05))
    assert set(listed) == {id(p) for p in classifier.head.parameters()}
    classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        decay_groups(classifier, 0.05)


def test_adapters_learn_at_the_rate_of_their_block(classifier: Classifier) -> None:
    adapters = add_adapters(classifier.encoder, rank=2, alpha=2.0, seed=0)
    learn_only(classifier, [*adapters, *classifier.head.parameters()])
    found = scales(layer_decay_groups(classifier, classifier.encoder, 0.05, DECAY))
    per_block = [[found.pop(id(p)) for p in adapters[4 * n : 4 * n + 4]] for n in range(3)]
    assert per_block == [[DECAY ** (3 - n)] * 4 for n in range(3)]
    assert set(found) == {id(p) for p in classifier.head.parameters()}


def test_an_optimiser_takes_the_groups(classifier: Classifier) -> None:
    groups = layer_decay_groups(classifier, classifier.encoder, 0.05, DECAY)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {DECAY**n for n in range(5)}
