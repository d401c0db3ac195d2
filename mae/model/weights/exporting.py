"""A folder like artifacts/pretrain -> the same weights as the rest of the world reads them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from mae.errors import CheckpointError, ParamsError
from mae.files import replacing_file, replacing_folder, write_json
from mae.model.artifact import load_autoencoder, load_encoder, load_head, read_info
from mae.model.autoencoder import Autoencoder
from mae.model.encoder import Architecture, Encoder
from mae.model.patches import Size
from mae.model.weights.beside import EPS
from mae.model.weights.converting import to_theirs
from mae.model.weights.placing import check_replaceable
from mae.model.weights.shapes import DecoderShape, Said, Shape
from mae.pixels import PixelStatistics

Goal = Literal["reference", "timm", "vit_mae", "vit"]

_BICUBIC = 3  # Pillow's number, which HuggingFace's processors use


@dataclass(frozen=True)
class Exported:
    """What was written, and the lines of Python that read it elsewhere."""

    path: Path
    usage: str


@dataclass(frozen=True)
class _Model:
    """Weights named as in the autoencoder (and head.*), and what describes them."""

    state: dict[str, Tensor]
    shape: Shape
    statistics: PixelStatistics
    said: Said
    head_feature: str | None


def export_weights(folder: Path, out: Path, to: Goal, *, encoder_only: bool = False) -> Exported:
    """Write the weights of `folder` for the code `to`; whole or not at all.

    reference (facebookresearch/mae) and timm: a .safetensors file; vit_mae and vit: a folder for
    transformers' from_pretrained. Raises CheckpointError for a network that `to` has no place for.
    """
    model = _model(folder, with_decoder=to in ("reference", "vit_mae") and not encoder_only)
    if to in ("reference", "timm"):
        if out.suffix != ".safetensors":
            raise ParamsError(f"--out {out} must end in .safetensors")
        with replacing_file(out) as temporary:
            _save(temporary, to_theirs(model.state, "reference", model.shape), model)
        return Exported(out, _usage(to, out, model))
    config = _config(to, model)
    prefix = "" if config["architectures"] in (["ViTMAEModel"], ["ViTModel"]) else "vit."
    theirs = {
        name if name.startswith(("decoder.", "classifier.")) else prefix + name: value
        for name, value in to_theirs(model.state, "huggingface", model.shape).items()
    }
    check_replaceable(out, "config.json")
    with replacing_folder(out) as temporary:
        _save(temporary / "model.safetensors", theirs, model)
        write_json(temporary / "config.json", config)
        write_json(temporary / "preprocessor_config.json", _preprocessor(model))
    return Exported(out, _usage(to, out, model))


def _model(folder: Path, *, with_decoder: bool) -> _Model:
    info = read_info(folder)
    with_decoder = with_decoder and "autoencoder" in info
    if with_decoder:
        return _with_decoder(folder)
    artifact = load_encoder(folder)
    encoder = _checked_encoder(artifact.encoder, folder)
    head = load_head(folder)
    state = _prefixed("encoder.", encoder.state_dict())
    if head is not None:
        state |= _prefixed("head.", head.layer.state_dict())
    a = encoder.architecture
    return _Model(
        state=state,
        shape=Shape(a, None, None if head is None else head.layer.out_features, ()),
        statistics=artifact.statistics,
        said=_said(a, artifact.statistics, artifact.resize),
        head_feature=None if head is None else head.feature,
    )


def _with_decoder(folder: Path) -> _Model:
    artifact = load_autoencoder(folder)
    autoencoder, params = artifact.autoencoder, artifact.autoencoder.params
    alone = "export the encoder alone with --encoder-only"
    if not isinstance(autoencoder, Autoencoder):
        raise CheckpointError(f"{folder} is of method {params.method}, known nowhere else: {alone}")
    _checked_encoder(autoencoder.encoder, folder)
    if params.decoder.mask_tokens != "decoder" or params.decoder.positions == "shared":
        raise CheckpointError(
            f"{folder}: no other code has a decoder with mask_tokens "
            f"{params.decoder.mask_tokens} and positions {params.decoder.positions}: {alone}"
        )
    if params.target.kind not in ("pixels", "normalized_pixels"):
        raise CheckpointError(
            f"{folder}: no other code predicts the target {params.target.kind}: {alone}"
        )
    a, decoder = autoencoder.encoder.architecture, params.decoder
    said = _said(a, artifact.statistics, params.resize)
    return _Model(
        state=autoencoder.state_dict(),
        shape=Shape(
            a,
            DecoderShape(
                decoder.width, decoder.depth, decoder.heads, decoder.positions == "learned"
            ),
            None,
            (),
        ),
        statistics=artifact.statistics,
        said=Said(
            decoder_heads=decoder.heads,
            target=params.target.kind,
            mask_ratio=params.mask.last_ratio,
        ).over(said),
        head_feature=None,
    )


def _checked_encoder(encoder: Any, folder: Path) -> Encoder:
    if not isinstance(encoder, Encoder):
        raise CheckpointError(f"the encoder in {folder} is no vision transformer: nobody reads it")
    a = encoder.architecture
    if a.height % a.patch[0] or a.width % a.patch[1]:
        raise CheckpointError(
            f"{folder} fills images of {a.height} x {a.width} up to whole patches, which no other "
            "code does"
        )
    return encoder


def _said(a: Architecture, statistics: PixelStatistics, resize: float) -> Said:
    return Said(
        height=a.height,
        width=a.width,
        heads=a.heads,
        mean=statistics.mean,
        std=statistics.std,
        bit_depth=statistics.bit_depth,
        resize=resize,
    )


def _save(path: Path, weights: dict[str, Tensor], model: _Model) -> None:
    # transformers reads no file without "format"; "maestro" is for coming back here.
    about = {"format": "pt", "maestro": json.dumps(model.said.to_dict(), sort_keys=True)}
    save_file({name: value.cpu() for name, value in weights.items()}, path, metadata=about)
    path.chmod(0o644)


def _config(to: Goal, model: _Model) -> dict[str, Any]:
    """Return config.json. Raises CheckpointError where transformers' code would go wrong."""
    a, decoder = model.shape.architecture, model.shape.decoder
    if a.pooled_norm:
        raise CheckpointError(
            "transformers' ViTs normalise before the mean over patches and these weights after "
            "it: export to timm"
        )
    if to == "vit_mae" and (a.height != a.width or a.patch[0] != a.patch[1]):
        raise CheckpointError(
            f"transformers' ViTMAE takes square images and patches, not {a.height} x {a.width} in "
            f"{a.patch[0]} x {a.patch[1]}: export to reference, timm or vit"
        )
    config: dict[str, Any] = {
        "model_type": "vit_mae" if to == "vit_mae" else "vit",
        "hidden_size": a.dim,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "intermediate_size": int(a.dim * a.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": EPS,
        "image_size": _side((a.height, a.width)),
        "patch_size": _side(a.patch),
        "num_channels": a.channels,
        "qkv_bias": True,
    }
    if to == "vit":
        if model.shape.classes is None:
            return config | {"architectures": ["ViTModel"]}
        names = {str(index): f"LABEL_{index}" for index in range(model.shape.classes)}
        return config | {
            "architectures": ["ViTForImageClassification"],
            "id2label": names,
            "label2id": {name: int(index) for index, name in names.items()},
        }
    if decoder is None:
        return config | {"architectures": ["ViTMAEModel"]}
    return config | {
        "architectures": ["ViTMAEForPreTraining"],
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
        "mask_ratio": model.said.mask_ratio,
        "norm_pix_loss": model.said.target == "normalized_pixels",
    }


def _preprocessor(model: _Model) -> dict[str, Any]:
    a, statistics = model.shape.architecture, model.statistics
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": a.height, "width": a.width},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / statistics.full_scale,
        "do_normalize": True,
        "image_mean": list(statistics.mean),
        "image_std": list(statistics.std),
    }


def _side(pair: Size) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _usage(to: Goal, out: Path, model: _Model) -> str:
    a, decoder = model.shape.architecture, model.shape.decoder
    if to == "timm":
        pooling = ', global_pool="avg"' if a.pooled_norm else ""
        return (
            f'timm.create_model("vit_base_patch16_224", img_size=({a.height}, {a.width}), '
            f"patch_size={_side(a.patch)}, in_chans={a.channels}, embed_dim={a.dim}, "
            f"depth={a.depth}, num_heads={a.heads}, mlp_ratio={a.mlp_ratio:g}, "
            f"num_classes={model.shape.classes or 0}{pooling}, checkpoint_path={str(out)!r})"
        )
    if to == "reference":
        return f"model.load_state_dict(safetensors.torch.load_file({str(out)!r}))"
    name = _config(to, model)["architectures"][0]
    more = ", add_pooling_layer=False" if name == "ViTModel" else ""
    assert decoder is None or name == "ViTMAEForPreTraining"
    return f"transformers.{name}.from_pretrained({str(out)!r}{more})"
