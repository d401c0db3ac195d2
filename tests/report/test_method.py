from typing import Any

import pytest

from mae.model.convolutional import ConvolutionalArchitecture
from mae.report.method import how_built, how_pretrained, map_of, truth_used
from tests.model.test_autoencoder import model_params
from tests.model.test_encoder import architecture


def described(**changes: Any) -> dict[str, Any]:
    return {"autoencoder": {"params": model_params(**changes).model_dump(mode="json")}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {},
            "75% of the patches were hidden and had to be predicted as normalised pixels by a "
            "decoder of width 16 and depth 1.",
        ),
        (
            {"mask": {"kind": "grid", "ratio": 0.5, "final_ratio": 0.75}, "target": "pca"},
            "At first 50% and at last 75% of the patches were hidden and had to be predicted as "
            "principal components of patches by a decoder of width 16 and depth 1.",
        ),
        (
            {
                "method": "simmim",
                "decoder": {"width": 16, "depth": 0, "heads": 2, "mask_tokens": "encoder"},
                "target": "pixels",
            },
            "75% of the patches were hidden and had to be predicted as pixels by a linear layer.",
        ),
        (
            {"method": "autoencoder", "mask": {"kind": "random", "ratio": 0.0}},
            "Nothing was hidden; all patches were predicted as normalised pixels by a decoder of "
            "width 16 and depth 1.",
        ),
        ({"method": "denoising"}, "Noise was added to the images, and the clean ones were"),
        ({"method": "supervised"}, "Trained on the labels"),
        ({"method": "convolutional"}, "A convolutional autoencoder"),
    ],
)
def test_each_method_is_told(changes: dict[str, Any], says: str) -> None:
    assert how_pretrained(described(**changes)).startswith(says)


def test_imported_weights_have_no_story() -> None:
    assert "imported without a decoder" in how_pretrained({"resize": 1.0})


def test_whether_the_pictures_flatter() -> None:
    assert truth_used(described())
    assert not truth_used(described(target="pixels"))
    assert not truth_used(None) and not truth_used({"resize": 1.0})


def test_both_kinds_of_encoder_are_told() -> None:
    vit = architecture(height=15, pad=True).to_dict()
    assert how_built(vit) == (
        "vision transformer of width 32, depth 2 and 4 heads on images of 15 x 24 pixels "
        "(height x width) in patches of 4 x 8"
    )
    assert map_of(vit) == "32 x 4 x 3"
    plain = ConvolutionalArchitecture(channels=1, height=16, width=24, dim=32).to_dict()
    assert how_built(plain).startswith("convolutional encoder of width 32 on images of 16 x 24")
    assert map_of(plain) == "32 x 2 x 3"
