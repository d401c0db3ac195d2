import pytest
import timm
import torch
from safetensors.torch import save_file

from mae.errors import CheckpointError, DataError, ParamsError
from mae.evaluation.arms import baselines, frozen_arm, frozen_arms, load_baseline, words
from mae.model.artifact import load_encoder
from mae.pixels import PixelStatistics

RGB = PixelStatistics((0.5,) * 3, (0.2,) * 3)


@pytest.fixture
def timm_file(tmp_path):
    """Return a maker of weights as timm saves them, of a tiny transformer for 32 x 32 pixels."""

    def make(channels: int):
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, in_chans=channels, embed_dim=192, depth=2, num_heads=3
        )
        path = tmp_path / "timm.safetensors"
        save_file(model.state_dict(), path)
        return path, model

    return make


def with_baselines(make_params, **named: str):
    params = make_params()
    evaluate = params.evaluate.model_copy(update={"baselines": named})
    return params.model_copy(update={"evaluate": evaluate})


def test_arms_come_in_order_and_differ(make_params, tiny_encoder) -> None:
    params = with_baselines(make_params, other=str(tiny_encoder))
    arms = frozen_arms(params, load_encoder(tiny_encoder), pixels=True)
    assert list(arms) == ["pretrained", "random", "other", "pixels"]
    assert all(arm.name == name for name, arm in arms.items())
    assert arms["pixels"].encoder is None
    assert arms["random"].weights_sha != arms["pretrained"].weights_sha
    # The same weights by another name are the same features.
    assert arms["other"].weights_sha == arms["pretrained"].weights_sha
    assert "pixels" not in frozen_arms(params, load_encoder(tiny_encoder), pixels=False)


def test_the_random_arm_is_a_function_of_the_seed(make_params, tiny_encoder) -> None:
    params, artifact = make_params(), load_encoder(tiny_encoder)
    one, same = (frozen_arms(params, artifact, pixels=False)["random"] for _ in range(2))
    other = frozen_arms(params.model_copy(update={"seed": 1}), artifact, pixels=False)["random"]
    assert one.weights_sha == same.weights_sha != other.weights_sha


def test_one_changed_weight_is_another_arm(tiny_encoder) -> None:
    artifact = load_encoder(tiny_encoder)
    before = frozen_arm("it", artifact).weights_sha
    with torch.no_grad():
        artifact.encoder.cls_token[0, 0, 0] += 1e-6
    assert frozen_arm("it", artifact).weights_sha != before


def test_a_file_of_timms_is_a_baseline_in_its_own_frame(timm_file) -> None:
    path, model = timm_file(3)
    artifact = load_baseline("supervised", path, RGB)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.eval().forward_features(images)
        torch.testing.assert_close(artifact.encoder(images).cls, tokens[:, 0], atol=1e-4, rtol=1e-4)
    arm = frozen_arm("supervised", artifact)
    assert (arm.height, arm.width) == (32, 32)
    assert arm.statistics.mean == (0.485, 0.456, 0.406)


def test_a_baseline_for_other_channels_is_refused_by_name(timm_file, tiny_encoder) -> None:
    path, _ = timm_file(3)
    grey = PixelStatistics((0.5,), (0.2,))
    with pytest.raises(DataError, match=r"evaluate.baselines.colour: .* of 3 channels and 8 bits"):
        load_baseline("colour", path, grey)
    with pytest.raises(DataError, match=r"evaluate.baselines.grey: .* of 1 channels"):
        load_baseline("grey", tiny_encoder, RGB)


def test_what_the_weights_do_not_say_is_asked_for(timm_file) -> None:
    path, _ = timm_file(1)
    with pytest.raises(ParamsError, match=r"evaluate.baselines.one: .*mae weights import"):
        load_baseline("one", path, PixelStatistics((0.5,), (0.2,)))


def test_a_missing_or_damaged_baseline_is_named(make_params, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"evaluate.baselines.lost: .*does not exist"):
        baselines(with_baselines(make_params, lost=str(tmp_path / "no")), RGB)
    (tmp_path / "weights.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=r"evaluate.baselines.broken: "):
        load_baseline("broken", tmp_path / "weights.safetensors", RGB)


def test_readers_get_words() -> None:
    assert [words(name) for name in ("scratch", "random", "pixels", "dino")] == [
        "from scratch",
        "random encoder",
        "raw pixels",
        "dino",
    ]
