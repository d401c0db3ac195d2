import torch
from hypothesis import given
from hypothesis import strategies as st

from mae.model.masking import draw_masking
from mae.params import MaskParams


@given(st.integers(2, 80), st.floats(0.05, 0.95), st.integers(0, 100))
def test_counts_are_exact_and_nothing_is_lost(patches: int, ratio: float, epoch: int) -> None:
    mask = MaskParams(kind="random", ratio=ratio)
    masking = draw_masking(mask, 0, epoch, torch.arange(4), patches)
    assert masking.keep.shape == (4, mask.kept(patches))
    both = torch.cat([masking.keep, masking.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(patches).expand(4, -1))
    assert masking.as_mask().sum(dim=1).tolist() == [patches - mask.kept(patches)] * 4
    assert not masking.as_mask().gather(1, masking.keep).any()


@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6, unique=True))
def test_a_mask_does_not_depend_on_the_batch(ids: list[int]) -> None:
    mask = MaskParams(kind="random", ratio=0.75)
    together = draw_masking(mask, 3, 5, torch.tensor(ids), 36)
    for row, sample in enumerate(ids):
        alone = draw_masking(mask, 3, 5, torch.tensor([sample]), 36)
        assert torch.equal(together.keep[row], alone.keep[0])


def test_masks_change_with_seed_epoch_and_image_and_cover_evenly() -> None:
    mask = MaskParams(kind="random", ratio=0.75)
    ids = torch.arange(4000)
    first = draw_masking(mask, 0, 0, ids, 16).as_mask()
    for other in (draw_masking(mask, 1, 0, ids, 16), draw_masking(mask, 0, 1, ids, 16)):
        same = (first == other.as_mask()).all(dim=1).float().mean()
        assert same < 0.02  # 1 of 1820 by chance
    assert (first.float().mean(dim=0) - 0.75).abs().max() < 0.03
