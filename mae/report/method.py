"""What an encoder is and how it was pretrained, in words, from its encoder.json."""

from typing import Any

from mae.model.convolutional import KIND, ConvolutionalArchitecture
from mae.model.encoder import Architecture
from mae.params import ModelParams

_TARGETS = {
    "pixels": "pixels",
    "normalized_pixels": "normalised pixels",
    "pca": "principal components of patches",
    "tokens": "tokens of a codebook",
}
_OTHER_METHODS = {
    "convolutional": "A convolutional autoencoder: nothing was hidden, and every pixel had to be "
    "reproduced through a code an eighth as high and wide.",
    "supervised": "Trained on the labels, without any reconstruction.",
}


def how_pretrained(encoder: dict[str, Any]) -> str:
    """Return what was hidden, what had to be predicted of it, and by what."""
    if "autoencoder" not in encoder:
        return "The weights were imported without a decoder."
    params = ModelParams(**encoder["autoencoder"]["params"])
    if params.method in _OTHER_METHODS:
        return _OTHER_METHODS[params.method]
    predicted = f"predicted as {_TARGETS[params.target.kind]} {_by(params)}"
    if params.method == "denoising":
        return f"Noise was added to the images, and the clean ones were {predicted}."
    if params.mask.ratio == 0:
        return f"Nothing was hidden; all patches were {predicted}."
    return f"{_hidden(params)} of the patches were hidden and had to be {predicted}."


def how_built(architecture: dict[str, Any]) -> str:
    """Return the kind and shape of the network, and of what it takes, without an article."""
    a = architecture
    takes = f"images of {a['height']} x {a['width']} pixels (height x width)"
    if a.get("kind") == KIND:
        return f"convolutional encoder of width {a['dim']} on {takes}"
    return (
        f"vision transformer of width {a['dim']}, depth {a['depth']} and {a['heads']} heads on "
        f"{takes} in patches of {a['patch'][0]} x {a['patch'][1]}"
    )


def map_of(architecture: dict[str, Any]) -> str:
    """Return the shape of the map of patch features, as in `128 x 6 x 6`."""
    kind = ConvolutionalArchitecture if architecture.get("kind") == KIND else Architecture
    hp, wp = kind.from_dict(architecture).grid
    return f"{architecture['dim']} x {hp} x {wp}"


def truth_used(encoder: dict[str, Any] | None) -> bool:
    """Whether pictures of reconstructions borrow brightness and contrast from the true patches."""
    own = (encoder or {}).get("autoencoder")
    return own is not None and own["params"]["target"]["kind"] == "normalized_pixels"


def _hidden(params: ModelParams) -> str:
    first, last = params.mask.ratio, params.mask.last_ratio
    return f"{first:.0%}" if first == last else f"At first {first:.0%} and at last {last:.0%}"


def _by(params: ModelParams) -> str:
    decoder = params.decoder
    if not decoder.depth:
        return "by a linear layer"
    return f"by a decoder of width {decoder.width} and depth {decoder.depth}"
