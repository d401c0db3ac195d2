from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.model.masking import Masking, draw_masking
from mae.params import MaskParams

KINDS = ("random", "block", "inverse_block", "grid", "mixed")
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 11)).filter(lambda grid: grid[0] * grid[1] > 1)
RATIOS = st.floats(0.05, 0.95)


def draw(kind: str, ratio: float, count: int, grid: tuple[int, int], **more: Any) -> Masking:
    return draw_masking(mask_params(kind, ratio), 0, 0, torch.arange(count), grid, **more)


def mask_params(kind: str, ratio: float) -> MaskParams:
    return MaskParams(kind=kind, ratio=ratio)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.sampled_from(KINDS), GRIDS, RATIOS, st.integers(0, 100))
def test_counts_are_exact_and_nothing_is_lost(
    kind: str, grid: tuple[int, int], ratio: float, epoch: int
) -> None:
    mask, patches = mask_params(kind, ratio), grid[0] * grid[1]
    masking = draw_masking(mask, 0, epoch, torch.arange(4), grid)
    assert masking.keep.shape == (4, mask.kept(patches))
    assert torch.equal(masking.order.sort(dim=1).values, torch.arange(patches).expand(4, -1))
    assert masking.as_mask().sum(dim=1).tolist() == [patches - mask.kept(patches)] * 4
    assert not masking.as_mask().gather(1, masking.keep).any()


@settings(deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6, unique=True),
    st.booleans(),
)
def test_a_mask_does_not_depend_on_the_batch(kind: str, ids: list[int], holes: bool) -> None:
    mask, images = mask_params(kind, 0.6), torch.tensor(ids)
    valid = (images[:, None] >> torch.arange(24)) % 3 > 0 if holes else None
    together = draw_masking(mask, 3, 5, images, (4, 6), valid=valid)
    for row in range(len(ids)):
        one = slice(row, row + 1)
        alone = draw_masking(
            mask, 3, 5, images[one], (4, 6), valid=None if valid is None else valid[one]
        )
        assert torch.equal(together.order[row], alone.order[0])


@pytest.mark.parametrize("kind", KINDS)
def test_masks_change_with_seed_epoch_and_image(kind: str) -> None:
    mask, ids = mask_params(kind, 0.75), torch.arange(2000)
    first = draw_masking(mask, 0, 0, ids, (6, 6)).as_mask()
    others = [draw_masking(mask, 1, 0, ids, (6, 6)), draw_masking(mask, 0, 1, ids, (6, 6))]
    limit = 0.3 if kind == "grid" else 0.1  # a grid has four places to lie, an inner block few
    for other in (*others, Masking(*(part.flip(0) for part in others[0][:2]))):
        assert (first == other.as_mask()).all(dim=1).float().mean() < limit


def test_random_masks_cover_evenly() -> None:
    share = draw("random", 0.75, 4000, (4, 4)).as_mask().float().mean(dim=0)
    assert (share - 0.75).abs().max() < 0.03


def test_the_random_mask_is_the_order_of_the_hashes() -> None:
    """Bits that were published once must never change: runs are continued from them."""
    masking = draw("random", 0.75, 2, (4, 4))
    assert masking.keep.tolist() == [[0, 6, 7, 12], [0, 6, 9, 10]]


@pytest.mark.parametrize("grid", [(14, 14), (6, 20)])
def test_a_grid_shows_one_of_each_two_by_two(grid: tuple[int, int]) -> None:
    visible = ~draw("grid", 0.75, 20, grid).as_mask().reshape(20, *grid)
    cells = visible.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).sum(dim=(2, 4))
    assert (cells == 1).all()
    half = draw("grid", 0.5, 20, grid).as_mask().reshape(20, *grid)
    assert (half[:, 1:] != half[:, :-1]).all() and (half[:, :, 1:] != half[:, :, :-1]).all()


def neighbours_alike(mask: torch.Tensor) -> float:
    """Share of neighbouring patches that are both hidden or both visible; mask (N, Hp, Wp)."""
    down, across = mask[:, 1:] == mask[:, :-1], mask[:, :, 1:] == mask[:, :, :-1]
    return float(torch.cat([down.flatten(), across.flatten()]).float().mean())


def test_blocks_hold_together() -> None:
    alike = {
        kind: neighbours_alike(draw(kind, 0.6, 100, (14, 14)).as_mask().reshape(-1, 14, 14))
        for kind in KINDS
    }
    assert alike["grid"] < alike["random"] < alike["mixed"] < alike["block"]
    assert alike["inverse_block"] > 0.85
    assert alike["random"] == pytest.approx(0.6**2 + 0.4**2, abs=0.02)


@settings(deadline=None)
@given(GRIDS, RATIOS)
def test_an_inverse_block_is_a_rectangle_but_for_its_edge(
    grid: tuple[int, int], ratio: float
) -> None:
    masking = draw("inverse_block", ratio, 5, grid)
    if not masking.keep.shape[1]:
        return
    visible = ~masking.as_mask().reshape(5, *grid)
    for one in visible:
        rows, columns = one.any(dim=1).nonzero(), one.any(dim=0).nonzero()
        box = one[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box[1:-1, 1:-1].all()


@settings(deadline=None)
@given(st.sampled_from(KINDS), GRIDS, RATIOS, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_patches_without_data_are_neither_shown_nor_asked_for(
    kind: str, grid: tuple[int, int], ratio: float, seed: int, share: float
) -> None:
    patches, mask = grid[0] * grid[1], mask_params(kind, ratio)
    if not 0 < mask.kept(patches) < patches:
        return
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(4, patches, generator=generator) >= share
    masking = draw(kind, ratio, 4, grid, valid=valid)
    assert masking.keep.shape == (4, mask.kept(patches))
    assert torch.equal(masking.order.sort(dim=1).values, torch.arange(patches).expand(4, -1))
    assert masking.valid is not None and masking.shown is not None and masking.counted is not None
    assert torch.equal(masking.valid, valid.gather(1, masking.order))
    for row, holding in enumerate(valid.sum(dim=1).tolist()):
        shown, asked = int(masking.shown[row].sum()), int(masking.counted[row].sum())
        assert shown + asked == holding
        assert shown == min(holding, max(1, mask.kept(holding)))
        assert masking.as_mask()[row].sum() == asked
        assert not (masking.as_mask()[row] & ~valid[row]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_images_with_all_their_data_are_masked_as_ever(kind: str) -> None:
    plain = draw(kind, 0.7, 5, (5, 7))
    marked = draw(kind, 0.7, 5, (5, 7), valid=torch.ones(5, 35, dtype=torch.bool))
    assert torch.equal(plain.order, marked.order)
    assert marked.valid is not None and marked.valid.all()


def test_a_ratio_given_for_an_epoch_takes_the_place_of_the_last() -> None:
    mask = MaskParams(kind="random", ratio=0.5, final_ratio=0.75)
    ids = torch.arange(2)
    assert draw_masking(mask, 0, 0, ids, (4, 4)).keep.shape[1] == 4
    assert draw_masking(mask, 0, 0, ids, (4, 4), ratio=0.5).keep.shape[1] == 8
    assert draw_masking(mask, 0, 0, ids, (4, 4), ratio=0.0).hidden.shape[1] == 0


@pytest.mark.parametrize("ramp", ["linear", "cosine"])
def test_the_ratio_moves_from_the_first_epoch_to_the_last(ramp: Any) -> None:
    mask = MaskParams(kind="random", ratio=0.5, final_ratio=0.9, ramp=ramp)
    ratios = [mask.ratio_at(epoch, 5) for epoch in range(5)]
    assert ratios[0] == 0.5 and ratios[-1] == pytest.approx(0.9)
    assert ratios == sorted(ratios) and ratios[2] == pytest.approx(0.7)
    assert ratios[1] == pytest.approx(0.6 if ramp == "linear" else 0.5 + 0.4 * 0.14645, abs=1e-4)
    assert mask.ratio_at(0, 1) == 0.5
    assert MaskParams(kind="random", ratio=0.5).ratio_at(3, 5) == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [True, False])
def test_masks_are_the_same_bits_on_every_device(kind: str, holes: bool) -> None:
    mask, ids = mask_params(kind, 0.7), torch.arange(500)
    valid = (ids[:, None] * 7 + torch.arange(70)) % 5 > 0 if holes else None
    here = draw_masking(mask, 3, 9, ids, (7, 10), valid=valid)
    there = draw_masking(
        mask, 3, 9, ids.cuda(), (7, 10), valid=None if valid is None else valid.cuda()
    )
    assert torch.equal(here.order, there.order.cpu())
