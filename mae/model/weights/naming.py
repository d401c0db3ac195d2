"""What each weight is called in the reference release, in timm and in HuggingFace's ViTs.

One table leads from our modules to theirs and is read in both directions, so that what is
imported and what is exported cannot drift apart.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mae.errors import CheckpointError

Family = Literal["reference", "huggingface"]


@dataclass(frozen=True)
class Naming:
    """Their modules by ours. A tuple of several: theirs, stacked in that order, make ours."""

    encoder: dict[str, str]
    blocks: str
    block: dict[str, tuple[str, ...]]
    positions: str
    pooled_norm: str
    decoder: dict[str, str]
    decoder_blocks: str
    decoder_positions: str
    head: str


# facebookresearch/mae and, for the encoder, timm's VisionTransformer.
REFERENCE = Naming(
    encoder={"cls_token": "cls_token", "patch_embed": "patch_embed.proj", "norm": "norm"},
    blocks="blocks",
    block={
        name: (name,) for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    },
    positions="pos_embed",
    pooled_norm="fc_norm",
    decoder={
        "embed": "decoder_embed",
        "mask_token": "mask_token",
        "norm": "decoder_norm",
        "predict": "decoder_pred",
    },
    decoder_blocks="decoder_blocks",
    decoder_positions="decoder_pos_embed",
    head="head",
)

# transformers, as every version of it reads them; without the "vit." that its models with
# something on top put before the encoder's names.
HUGGINGFACE = Naming(
    encoder={
        "cls_token": "embeddings.cls_token",
        "patch_embed": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    },
    blocks="encoder.layer",
    block={
        "norm1": ("layernorm_before",),
        "attn.qkv": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
        "attn.proj": ("attention.output.dense",),
        "norm2": ("layernorm_after",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
    },
    positions="embeddings.position_embeddings",
    pooled_norm="fc_norm",
    decoder={
        "embed": "decoder.decoder_embed",
        "mask_token": "decoder.mask_token",
        "norm": "decoder.decoder_norm",
        "predict": "decoder.decoder_pred",
    },
    decoder_blocks="decoder.decoder_layers",
    decoder_positions="decoder.decoder_pos_embed",
    head="classifier",
)

NAMINGS: dict[Family, Naming] = {"reference": REFERENCE, "huggingface": HUGGINGFACE}

# Weights that have no part in what an encoder returns or a decoder predicts, and why not.
IGNORABLE: dict[Family, dict[str, str]] = {
    "reference": {
        r"head\.[01]\.\w+": "the normalisation and layer of a linear probe, fitted to its data",
    },
    "huggingface": {
        r"pooler\.dense\.(weight|bias)": "a layer after the class token, which is returned itself",
        r"embeddings\.mask_token": "stands in for hidden patches, which this encoder never sees",
    },
}

# Spellings of transformers' names: of its modules in memory since version 5, and of the decoder's
# layers in the files that version 5 writes.
_HUGGINGFACE_SPELLINGS = (
    (r"^vit\.", ""),
    (r"^layers\.(?=\d)", "encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def recognise(names: Iterable[str], where: str) -> Family:
    """Return whose names these are. Raises CheckpointError for those of another network."""
    names = list(names)
    if any(name.endswith("patch_embeddings.projection.weight") for name in names):
        return "huggingface"
    if "patch_embed.proj.weight" in names:
        return "reference"
    if {"patch_embed.weight", "encoder.patch_embed.weight"} & set(names):
        raise CheckpointError(
            f"{where} holds weights as Maestro itself names them: use the folder they lay in "
            "together with its encoder.json"
        )
    some = ", ".join(sorted(names)[:3])
    raise CheckpointError(
        f"{where} holds no vision transformer of the MAE release, timm or HuggingFace "
        f"(its weights: {some}, ...)"
    )


def spelling(name: str, family: Family) -> str:
    """Return the name as the tables above spell it."""
    if family == "huggingface":
        for pattern, plain in _HUGGINGFACE_SPELLINGS:
            name = re.sub(pattern, plain, name)
    return name


def why_ignored(name: str, family: Family) -> str | None:
    """Return why a weight may be left out, or None when it may not."""
    reasons = IGNORABLE[family].items()
    return next((reason for pattern, reason in reasons if re.fullmatch(pattern, name)), None)


def block_names(naming: Naming, depth: int, *, decoder: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return (our module, their modules) of every block of the encoder or the decoder."""
    prefix = naming.decoder_blocks if decoder else naming.blocks
    return [
        (f"blocks.{index}.{ours}", tuple(f"{prefix}.{index}.{name}" for name in theirs))
        for index in range(depth)
        for ours, theirs in naming.block.items()
    ]
