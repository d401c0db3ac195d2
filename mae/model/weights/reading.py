"""Weights files of others, read without running anything that is in them."""

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae.errors import CheckpointError
from mae.files import read_json, sha256_of_file

# What folders call their weights, in the order of preference.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# Where training code puts the weights in a checkpoint, and what wrappers put before each name.
_CONTAINERS = ("model", "state_dict", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class ForeignWeights:
    """Tensors by name, and what else lies beside them.

    sha256: of each file read, by name. metadata: of a safetensors header. config, preprocessor:
    config.json and preprocessor_config.json of the folder. arguments: of the training command,
    where a checkpoint holds them.
    """

    path: Path
    tensors: dict[str, Tensor]
    sha256: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


def read_weights(path: Path) -> ForeignWeights:
    """Read a .safetensors file, a torch file or a folder of either, to float32 on the CPU.

    Raises CheckpointError for what is damaged, holds no weights, or wants code to be run.
    """
    path = Path(path)
    if (path / "encoder.json").is_file():
        raise CheckpointError(f"{path} is Maestro's own already: use the folder as it is")
    files = _files_of(path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    for file in files:
        found, about, said = _read_file(file)
        tensors |= found
        metadata |= about
        arguments |= said
    configs = {}
    # Beside a file of another name than the folder's own weights, config.json may be of anything.
    if path.is_dir() or path.name in _SINGLE:
        folder = path if path.is_dir() else path.parent
        configs = {
            name: _read_config(folder / name)
            for name in ("config.json", "preprocessor_config.json")
            if (folder / name).is_file()
        }
        files = [*files, *(folder / name for name in configs)]
    return ForeignWeights(
        path=path,
        tensors=_sound(path, _unwrapped(tensors)),
        sha256={file.name: sha256_of_file(file) for file in files},
        metadata=metadata,
        config=configs.get("config.json", {}),
        preprocessor=configs.get("preprocessor_config.json", {}),
        arguments=arguments,
    )


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist: give a weights file, or a folder with one")
    for name in _SINGLE:
        if (path / name).is_file():
            return [path / name]
    for name in _SHARDED:
        if (path / name).is_file():
            parts = _read_config(path / name).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise CheckpointError(f"{path / name} names no files: download it again")
            # Only the name counts: an index must not lead out of its folder.
            return [path / Path(str(part)).name for part in sorted(set(parts.values()))]
    raise CheckpointError(
        f"{path} holds neither {' nor '.join(_SINGLE)}: give the weights file itself"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object: download it again")
    return content


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    # A zip archive or a bare pickle is torch's; the suffix is only a habit.
    if start[:2] == b"PK" or start[:1] == b"\x80":
        state, arguments = _read_torch(path)
        return state, {}, arguments
    try:
        with safe_open(path, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            return tensors, content.metadata() or {}, {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is neither a whole safetensors file nor a torch one ({error}): "
            "download it again"
        ) from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and training arguments of a torch file.

    The reference code saves its arguments as an argparse.Namespace, which only holds values; of
    everything else that is not a tensor or a plain container the loader refuses to make one.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols; what cannot be read is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(
                f"{path} is damaged, or no file of tensors alone: download it again, or convert it "
                "to safetensors where it was made"
            ) from None
        raise CheckpointError(
            f"{path} wants {wanted[1]} to be called when it is read, and nothing that a file asks "
            "for is run here: convert it to safetensors where it was made, if you trust it"
        ) from None
    except (
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is no whole torch file of weights ({reason}): download it again, or convert "
            "it to safetensors where it was made"
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__} and no named weights")
    said = content.get("args")
    arguments = dict(vars(said)) if isinstance(said, argparse.Namespace) else {}
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path} holds more than weights ({', '.join(strange[:3])}) and its weights under none "
            f"of the names {', '.join(_CONTAINERS)}: save the state dict alone"
        )
    return dict(content), arguments


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what data-parallel and compiled modules put before every name."""
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _sound(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, those of 16-bit floats widened; NaN and infinity are refused."""
    if not tensors:
        raise CheckpointError(f"{path} holds no weights")
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinity: the training that made it had diverged"
            )
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def own_hints(weights: ForeignWeights) -> dict[str, Any]:
    """Return what Maestro wrote into the header of a file that it exported, or {}."""
    try:
        hints = json.loads(weights.metadata.get("maestro", "{}"))
    except ValueError:
        return {}
    return hints if isinstance(hints, dict) else {}
