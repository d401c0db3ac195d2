"""The choices that the papers vary, each through the whole autoencoder."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mae.model.autoencoder import Autoencoder, build_autoencoder, masked_loss
from mae.model.losses import AbsoluteLoss, Loss, SquaredLoss, build_loss
from mae.model.noise import add_noise
from mae.model.patches import gather_patches, patchify
from mae.params import ModelParams
from tests.model.test_autoencoder import model_params, noise

IDS = torch.tensor([5, 6, 7])
FITTED = {
    "pca": {"mean": torch.zeros(32), "basis": torch.eye(32)[:, :6], "scale": torch.tensor(2.0)},
    "tokens": {"codebook": noise(9, 32)},
}


def made(channels: int = 2, **changes: Any) -> Autoencoder:
    """16 x 24 pixels in 24 patches of 4 x 4, of which 6 are visible."""
    params = model_params(**({"target": "pixels"} | changes))
    fitted = FITTED.get(params.target.kind)
    return build_autoencoder(params, channels, 0, fitted)


def decoder(**changes: Any) -> dict[str, Any]:
    return {"width": 16, "depth": 2, "heads": 2} | changes


LINEAR_HEAD = decoder(depth=0, mask_tokens="encoder")


@pytest.mark.parametrize("kind", ["random", "block", "inverse_block", "grid", "mixed"])
@pytest.mark.parametrize("over", ["hidden", "all", "discounted"])
@pytest.mark.parametrize(
    "head",
    [
        decoder(),
        decoder(positions="learned"),
        decoder(positions="shared"),
        decoder(mask_tokens="encoder"),
        LINEAR_HEAD,
    ],
)
def test_every_combination_learns(kind: str, over: str, head: dict[str, Any]) -> None:
    model = made(
        mask={"kind": kind, "ratio": 0.75}, loss={"kind": "l1", "over": over}, decoder=head
    )
    outcome = model(noise(3, 2, 16, 24), IDS, 0, 0)
    asked = 18 if over == "hidden" else 24
    assert outcome.prediction.shape == outcome.target.shape == (3, asked, 32)
    model.loss(outcome, build_loss(model.params.loss, model.params.target, 2, (4, 4))).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize(("target", "dim"), [("pca", 6), ("tokens", 9)])
def test_fitted_targets(target: str, dim: int) -> None:
    model = made(target={"kind": target, "components": 6, "codes": 9})
    images = noise(3, 2, 16, 24)
    outcome = model(images, IDS, 0, 0)
    assert outcome.prediction.shape == (3, 18, dim)
    hidden = gather_patches(patchify(images, (4, 4)), outcome.masking.hidden)
    if target == "pca":
        torch.testing.assert_close(outcome.target, hidden[..., :6] / 2)
    else:
        nearest = torch.cdist(hidden, FITTED["tokens"]["codebook"]).argmin(dim=-1)
        assert torch.equal(outcome.target, nearest)
    reconstruction, mask = model.reconstruct(images, IDS, 0, 0)
    mask = mask.expand_as(images)
    assert torch.equal(reconstruction[~mask], images[~mask])
    assert not torch.equal(reconstruction[mask], images[mask])


def test_mask_tokens_in_the_encoder_do_not_let_hidden_pixels_in() -> None:
    for head in (decoder(mask_tokens="encoder"), LINEAR_HEAD):
        model = made(decoder=head).eval()
        assert "mask_token" in model.state_dict()
        assert "decoder.mask_token" not in model.state_dict()
        images = noise(1, 2, 16, 24)
        before = model(images, IDS[:1], 0, 0)
        pixels = before.masking.as_mask()[0].reshape(4, 6)
        images[0, :, pixels.repeat_interleave(4, 0).repeat_interleave(4, 1)] += 10
        after = model(images, IDS[:1], 0, 0)
        assert torch.equal(before.prediction, after.prediction)
        # Mask tokens tell each other where they are: predictions differ from place to place.
        assert (before.prediction[0, 0] - before.prediction[0, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("over", ["hidden", "all", "discounted"])
def test_what_the_loss_is_over(over: str) -> None:
    model = made(loss={"kind": "mse", "over": over, "visible_weight": 0.25})
    images = noise(3, 2, 16, 24)
    outcome = model(images, IDS, 0, 0)
    mask = outcome.masking.as_mask()
    target = patchify(images, (4, 4))
    prediction = torch.zeros_like(target)
    prediction.scatter_(1, outcome.places[..., None].expand(-1, -1, 32), outcome.prediction)
    errors = (prediction - target).square().mean(dim=2)
    visible = {"hidden": 0.0, "all": 1.0, "discounted": 0.25}[over]
    weights = mask + visible * ~mask
    expected = (errors * weights).sum() / weights.sum()
    torch.testing.assert_close(masked_loss(outcome), expected)
    each = model.image_losses(outcome, SquaredLoss())
    torch.testing.assert_close(each, (errors * weights).sum(dim=1) / weights.sum(dim=1))
    torch.testing.assert_close(each.mean(), expected)


def blind(model: Autoencoder) -> Autoencoder:
    """Make the network predict zero, whatever it sees."""
    torch.nn.init.zeros_(model.decoder.predict.weight)
    return model


@pytest.mark.parametrize("over", ["hidden", "all", "discounted"])
@pytest.mark.parametrize("loss", [SquaredLoss(), AbsoluteLoss()])
def test_neither_ratio_nor_batch_changes_the_scale(over: str, loss: Loss) -> None:
    images = noise(64, 2, 16, 24)
    losses = []
    for ratio, count in ((0.75, 64), (0.25, 64), (0.75, 16)):
        model = blind(
            made(mask={"kind": "random", "ratio": ratio}, loss={"kind": "mse", "over": over})
        )
        outcome = model(images[:count], torch.arange(count), 0, 0)
        losses.append(float(model.loss(outcome, loss).detach()))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=0.05)


def test_losses_are_float32_under_autocast() -> None:
    model = made(target="normalized_pixels")
    with torch.autocast("cpu", torch.bfloat16):
        outcome = model(noise(3, 2, 16, 24), IDS, 0, 0)
        loss = model.loss(outcome, SquaredLoss())
    assert outcome.prediction.dtype == outcome.target.dtype == loss.dtype == torch.float32


# --- no data ------------------------------------------------------------------------------------


def with_holes() -> tuple[Tensor, Tensor]:
    """Three images: one whole, one without its right third, one with a single patch of data."""
    valid = torch.ones(3, 16, 24, dtype=torch.bool)
    valid[1, :, 16:] = False
    valid[2] = False
    valid[2, 4:8, 4:8] = True
    return noise(3, 2, 16, 24), valid


@pytest.mark.parametrize("kind", ["random", "block", "mixed"])
@pytest.mark.parametrize("over", ["hidden", "all"])
@pytest.mark.parametrize("head", [decoder(), decoder(mask_tokens="encoder"), LINEAR_HEAD])
def test_pixels_without_data_change_nothing(kind: str, over: str, head: dict[str, Any]) -> None:
    model = made(
        mask={"kind": kind, "ratio": 0.75}, loss={"kind": "mse", "over": over}, decoder=head
    ).eval()
    images, valid = with_holes()
    before = model(images, IDS, 0, 0, valid=valid)
    images = torch.where(valid[:, None], images, 1e4)
    after = model(images, IDS, 0, 0, valid=valid)
    assert before.weights is not None
    counts = before.weights > 0
    assert torch.equal(before.prediction[counts], after.prediction[counts])
    assert masked_loss(before).item() == masked_loss(after).item() < 1e3
    masked_loss(after).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("head", [decoder(), LINEAR_HEAD])
def test_an_image_with_holes_is_what_it_is_alone(head: dict[str, Any]) -> None:
    model = made(decoder=head).eval()
    images, valid = with_holes()
    together = model(images, IDS, 0, 0, valid=valid)
    plain = model(images[:1], IDS[:1], 0, 0)
    torch.testing.assert_close(together.prediction[:1], plain.prediction, rtol=1e-4, atol=1e-5)
    each = model.image_losses(together, SquaredLoss())
    for row in range(3):
        one = slice(row, row + 1)
        alone = model(images[one], IDS[one], 0, 0, valid=valid[one])
        torch.testing.assert_close(each[one], masked_loss(alone)[None], rtol=1e-4, atol=1e-6)
    # Shown is its one patch, so that nothing is left to ask of the last image.
    assert each[2] == 0 and together.weights is not None and not together.weights[2].any()


def test_a_batch_without_any_data_teaches_nothing() -> None:
    model = made()
    outcome = model(noise(3, 2, 16, 24), IDS, 0, 0, valid=torch.zeros(3, 16, 24, dtype=torch.bool))
    loss = masked_loss(outcome)
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_reconstruction_leaves_what_holds_no_data() -> None:
    model = made().eval()
    images, valid = with_holes()
    reconstruction, mask = model.reconstruct(images, IDS, 0, 0, valid=valid)
    assert not mask[:, 0][~valid].any()
    everywhere = mask.expand_as(images)
    assert torch.equal(reconstruction[~everywhere], images[~everywhere])
    assert (reconstruction[everywhere] != images[everywhere]).any()
    assert mask[1].sum() == 16 * 12  # three quarters of the 16 patches that are left


# --- padding ------------------------------------------------------------------------------------


def test_padded_patches_are_no_data() -> None:
    model = made(height=15, width=22, pad=True)
    assert model.params.grid == (4, 6)
    images = noise(3, 2, 15, 22)
    outcome = model(images, IDS, 0, 0)
    grids = outcome.masking.as_mask().reshape(3, 4, 6)
    assert not grids[:, 3].any() and not grids[:, :, 5].any()
    assert grids.sum() == 3 * (15 - int(15 * 0.25))
    reconstruction, mask = model.reconstruct(images, IDS, 0, 0)
    assert reconstruction.shape == (3, 2, 15, 22) and mask.shape == (3, 1, 15, 22)


def test_padding_what_needs_none_changes_nothing() -> None:
    images = noise(3, 2, 16, 24)
    outcomes = [made(pad=pad)(images, IDS, 0, 0) for pad in (False, True)]
    assert torch.equal(outcomes[0].prediction, outcomes[1].prediction)
    assert outcomes[1].weights is None


# --- methods of the same parts ------------------------------------------------------------------


def test_denoising_sees_noise_and_is_asked_for_the_clean_image() -> None:
    mask, loss = {"kind": "random", "ratio": 0.0}, {"kind": "mse", "over": "all"}
    plain = made(method="autoencoder", mask=mask, loss=loss)
    noisy = made(method="denoising", mask=mask, loss=loss, noise=0.7)
    images = noise(3, 2, 16, 24)
    outcome = noisy(images, IDS, 4, 2)
    assert torch.equal(outcome.target, patchify(images, (4, 4)))
    expected = plain(add_noise(images, IDS, 4, 2, 0.7), IDS, 4, 2)
    assert torch.equal(outcome.prediction, expected.prediction)
    reconstruction, hidden = plain.reconstruct(images, IDS, 0, 0)
    assert not hidden.any() and not torch.equal(reconstruction, images)


class ImageDistance(Loss):
    """A loss on whole images, as the perceptual one is: squares of each image, by pixel weight."""

    on_images = True

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        assert weights is not None
        squares = (prediction - target).square().mean(dim=1, keepdim=True) * weights
        return squares.sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))

    def mean(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        return self(prediction, target, weights).mean()


@pytest.mark.parametrize("over", ["hidden", "all", "discounted"])
def test_losses_on_images_see_predictions_in_their_places(over: str) -> None:
    model = made(loss={"kind": "mse", "over": over})
    outcome = model(noise(3, 2, 16, 24), IDS, 0, 0)
    loss = model.loss(outcome, ImageDistance())
    torch.testing.assert_close(loss, masked_loss(outcome))
    torch.testing.assert_close(
        model.image_losses(outcome, ImageDistance()), model.image_losses(outcome, SquaredLoss())
    )
    loss.backward()
    assert model.encoder.patch_embed.weight.grad is not None


# --- parameters ---------------------------------------------------------------------------------


def test_it_is_built_again_from_what_it_says_of_itself() -> None:
    model = made(
        positions="learned", decoder=decoder(positions="shared"), loss="l1", patch=(4, 8)
    ).eval()
    again = Autoencoder.from_dict(model.to_dict())
    again.load_state_dict(model.state_dict())
    images = noise(3, 2, 16, 24)
    assert torch.equal(
        again.eval()(images, IDS, 0, 0).prediction, model(images, IDS, 0, 0).prediction
    )
    assert again.params == model.params


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("tiny", (192, 12, 3)),
        ("small", (384, 12, 6)),
        ("base", (768, 12, 12)),
        ("large", (1024, 24, 16)),
        ("huge", (1280, 32, 16)),
    ],
)
def test_named_sizes_are_the_fields(size: str, shape: tuple[int, int, int]) -> None:
    params = model_params(size=size, dim=None, depth=None, heads=None)
    assert (params.dim, params.depth, params.heads) == shape
    assert ModelParams(**params.model_dump()) == params


def test_drop_path_and_checkpointing_reach_the_encoder() -> None:
    model = made(drop_path=0.3, checkpointing=True)
    assert model.encoder.checkpointing
    assert model.encoder.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    outcome = model.train()(noise(3, 2, 16, 24), IDS, 0, 0)
    masked_loss(outcome).backward()
    assert model.encoder.patch_embed.weight.grad is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch": 32}, "16 x 24 cannot be cut into patches of 32 x 32"),
        ({"mask": {"kind": "random", "ratio": 0.99}}, "keeps 0 of 24 patches"),
        ({"mask": {"kind": "block", "ratio": 0.0}}, "keeps 24 of 24 patches"),
        ({"mask": {"kind": "grid", "ratio": 0.5, "final_ratio": 0.99}}, "0.99 keeps 0 of 24"),
        ({"size": "giant", "dim": None, "depth": None, "heads": None}, "'tiny', 'small', 'base'"),
        ({"size": "tiny"}, "size tiny means dim 192, depth 12, heads 3: leave dim"),
        ({"dim": None}, "dim: missing; give them all, or a size"),
        ({"method": "magic"}, "'mae', 'autoencoder'"),
        ({"decoder": {"width": 16, "depth": 0, "heads": 2}}, "depth 0 needs mask_tokens: encoder"),
        ({"target": "tokens", "loss": "l1"}, "learned by cross-entropy"),
        ({"target": "pca", "loss": "frequency"}, "frequency looks at pixels"),
        ({"loss": "perceptual"}, "needs weights"),
        ({"dim": 34, "heads": 2}, "34 is not a multiple of 4"),
    ],
)
def test_impossible_choices_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model_params(**({"target": "pixels"} | changes))


def test_learned_positions_need_no_multiple_of_four() -> None:
    made(dim=34, heads=2, positions="learned")(noise(3, 2, 16, 24), IDS, 0, 0)
