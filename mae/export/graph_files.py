"""ONNX files on disk: one file, or above two gigabytes a graph with its weights beside it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from mae.errors import CheckpointError, MaestroError
from mae.export.description import EncoderDescription
from mae.files import flush_to_disk

# Protocol buffers end at 2 GiB; above this, weights lie beside the graph in <name>.data.
_ONE_FILE_BYTES = 1_900_000_000


def save_graph(model: onnx.ModelProto, path: Path, about: EncoderDescription) -> None:
    """Describe `model` and write it to `path`, each file whole; large weights to `<name>.data`.

    A graph names the file of its weights, so none of the two can be given another name. Raises
    MaestroError for a graph that onnx refuses.
    """
    model.producer_name, model.producer_version = "maestro-mae", about.version
    model.doc_string = about.preprocessing
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, about.to_metadata())
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = path.with_name(f"{path.name}.data")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        _write(model, Path(folder) / path.name, weights.name)
        # Weights first: a new graph never stands beside old ones.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            flush_to_disk(file)
            file.replace(path.with_name(file.name))
    if not external_data_files(path):
        weights.unlink(missing_ok=True)


def _write(model: onnx.ModelProto, path: Path, weights: str) -> None:
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _ONE_FILE_BYTES
    try:
        onnx.save_model(model, path, save_as_external_data=large, location=weights)
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().partition("\n")[0]
        raise MaestroError(f"onnx refuses the graph made for {path.name}: {reason}") from None


def external_data_files(path: Path) -> list[Path]:
    """Return the files that an ONNX file names beside itself, whether or not they are there.

    Raises CheckpointError for a file that is no ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # protobuf's, whose class differs from version to version
        raise CheckpointError(f"{path} is not an ONNX file, or a damaged one") from None
    names = {weights.location for weights in external_weights(model)}
    return [path.with_name(name) for name in sorted(names)]


def external_weights(model: onnx.ModelProto) -> Iterator[ExternalDataInfo]:
    """Yield where each of the weights lies that a graph keeps outside its file."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            yield ExternalDataInfo(tensor)
