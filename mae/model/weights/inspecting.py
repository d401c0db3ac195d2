"""What a weights file or an artifact holds, as lines for a person."""

from pathlib import Path

from mae.files import sha256_of_file
from mae.model.artifact import load_encoder, load_head
from mae.model.encoder import Architecture, Encoder
from mae.model.weights.importing import IMAGENET_MEAN, Identified, identify
from mae.model.weights.shapes import NOTHING_SAID, Said

Row = tuple[str, str]


def inspect_weights(path: Path, said: Said = NOTHING_SAID) -> list[Row]:
    """Return (name, value) rows on weights of others or of our own. Raises CheckpointError."""
    if (Path(path) / "encoder.json").is_file():
        return _own(Path(path))
    return _foreign(identify(path, said))


def _own(folder: Path) -> list[Row]:
    artifact = load_encoder(folder)
    info, head = artifact.info, load_head(folder)
    rows = [("names", "Maestro's own")]
    if isinstance(artifact.encoder, Encoder):
        rows += _architecture(artifact.encoder.architecture)
    model = info.get("autoencoder")
    rows.append(("decoder", _decoder_words(model) if model else "none"))
    if head is not None:
        rows.append(("classes", f"{head.layer.out_features}, told apart by the {head.feature}"))
    rows += _pixels(artifact.statistics.mean, artifact.statistics.std)
    for name, value in info["training"].get("imported", {}).get("sha256", {}).items():
        rows.append(("imported from", f"{name}, sha256 {value}"))
    for name in ("encoder.safetensors", "autoencoder.safetensors", "head.safetensors"):
        if (folder / name).is_file():
            rows.append(("file", f"{name}, sha256 {sha256_of_file(folder / name)}"))
    return rows


def _decoder_words(model: dict) -> str:
    decoder = model["decoder"] if "decoder" in model else model.get("params", {}).get("decoder")
    if not decoder:
        return "none"
    return f"width {decoder['width']}, depth {decoder['depth']}, {decoder['heads']} heads"


def _foreign(found: Identified) -> list[Row]:
    shape, said = found.shape, found.said
    rows = [("names", "HuggingFace" if found.family == "huggingface" else "MAE release, timm")]
    rows += _architecture(shape.architecture)
    if shape.decoder is None:
        rows.append(("decoder", "none"))
    else:
        d = shape.decoder
        positions = "learned" if d.learned_positions else "sincos"
        rows.append(
            ("decoder", f"width {d.width}, depth {d.depth}, {d.heads} heads, {positions} positions")
        )
        rows.append(("target", said.target or "not said: --target when importing"))
    if shape.classes is not None:
        rows.append(("classes", str(shape.classes)))
    if said.mean is not None and said.std is not None:
        rows += _pixels(said.mean, said.std)
    elif shape.architecture.channels == len(IMAGENET_MEAN):
        rows.append(("pixels", "not said: ImageNet's mean and deviation, unless --mean and --std"))
    else:
        rows.append(("pixels", "not said: --mean and --std when importing"))
    rows += [("file", f"{name}, sha256 {value}") for name, value in found.weights.sha256.items()]
    return rows + [("note", note) for note in found.notes]


def _architecture(a: Architecture) -> list[Row]:
    norm = "after the mean over patches" if a.pooled_norm else "of every token"
    return [
        ("images", f"{a.channels} x {a.height} x {a.width} (channels, height, width)"),
        ("patches", f"{a.patch[0]} x {a.patch[1]} pixels, grid {a.grid[0]} x {a.grid[1]}"),
        (
            "encoder",
            f"width {a.dim}, depth {a.depth}, {a.heads} heads, mlp ratio {a.mlp_ratio:g}, "
            f"{a.positions} positions",
        ),
        ("last norm", norm),
    ]


def _pixels(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Row]:
    return [
        ("mean", ", ".join(f"{value:.4g}" for value in mean)),
        ("std", ", ".join(f"{value:.4g}" for value in std)),
    ]
