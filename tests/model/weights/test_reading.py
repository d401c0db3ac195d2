"""Foreign files: nothing in them is run, and damage is one sentence."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mae.errors import CheckpointError
from mae.files import write_json
from mae.model.weights.importing import import_weights
from mae.model.weights.inspecting import inspect_weights
from mae.model.weights.reading import read_weights
from mae.model.weights.shapes import Said
from tests.model.weights.foreign import timm_vit

HEADS = Said(heads=4)


class Trap:
    """Unpickled by a trusting reader, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "args"])
def test_code_in_a_pickle_is_never_run(form: str, tmp_path: Path) -> None:
    sprung, file = tmp_path / "sprung", tmp_path / "weights.pth"
    content: Any = timm_vit().state_dict() | {"trap": Trap(sprung)}
    if form == "args":
        content = {"model": timm_vit().state_dict(), "args": Trap(sprung)}
    if form == "pickle":
        file.write_bytes(pickle.dumps({"trap": Trap(sprung)}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError, match=r"mkdir.*nothing that a file asks for is run"):
        import_weights(file, tmp_path / "ours", HEADS)
    assert not sprung.exists() and not (tmp_path / "ours").exists()
    with file.open("rb") as opened:  # the trap does work on those who trust it
        pickle.load(opened) if form == "pickle" else torch.load(opened, weights_only=False)
    assert sprung.exists()


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    state = timm_vit().state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    archive = (tmp_path / "whole.pth").read_bytes()
    damaged = {
        "empty.pth": b"",
        "page.bin": b"<!DOCTYPE html><html>404</html>",
        "half.safetensors": whole[: len(whole) // 2],
        "half.pth": archive[: len(archive) // 2],
        "start.pth": archive[:100],
        "script.pt": (tmp_path / "script.pt").read_bytes(),
        "pickle.pth": pickle.dumps([1, 2, 3])[:-1],
        "list.pth": pickle.dumps([1, 2, 3]),
        "none.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            import_weights(tmp_path / name, tmp_path / "ours")
        assert "\n" not in str(caught.value) and name in str(caught.value), name
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="give the weights file itself"):
        read_weights(tmp_path)
    assert not (tmp_path / "ours").exists()


def test_flipped_bytes_of_an_archive_never_escape_as_another_error(tmp_path: Path) -> None:
    torch.save(timm_vit(depth=1).state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for place in range(0, len(whole), len(whole) // 60):
        harmed = bytearray(whole)
        harmed[place : place + 8] = b"\xff" * 8
        (tmp_path / "harmed.pth").write_bytes(harmed)
        try:
            import_weights(tmp_path / "harmed.pth", tmp_path / "ours", HEADS)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_what_holds_no_vision_transformer(tmp_path: Path) -> None:
    for content, words in (
        ({"conv1.weight": torch.zeros(2)}, "no vision transformer"),
        ({"encoder.patch_embed.weight": torch.zeros(2)}, "as Maestro itself names"),
        ({"model": {"blocks": 3}}, "more than weights"),
        ({"epoch": 3, "optimizer": {}}, "more than weights"),
        (torch.zeros(3), "holds a Tensor"),
    ):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=words):
            import_weights(tmp_path / "x.pth", tmp_path / "ours")
    state = timm_vit().state_dict()
    torch.save(state | {"norm.weight": state["norm.weight"] * float("nan")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"norm\.weight holds NaN"):
        import_weights(tmp_path / "x.pth", tmp_path / "ours")
    torch.save(state | {"norm.weight": torch.ones(32, dtype=torch.int8)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"norm\.weight of torch\.int8"):
        import_weights(tmp_path / "x.pth", tmp_path / "ours", HEADS)
    for name, shape in (("norm.weight", (5,)), ("pos_embed", (1, 25)), ("pos_embed", (1, 25, 7))):
        torch.save(state | {name: torch.zeros(shape)}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=re.escape(str(shape))):
            import_weights(tmp_path / "x.pth", tmp_path / "ours", HEADS)


def test_wrappers_containers_and_half_precision(tmp_path: Path) -> None:
    state = timm_vit().state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    import_weights(tmp_path / "plain.safetensors", tmp_path / "plain", HEADS)
    expected = load_file(tmp_path / "plain/encoder.safetensors")
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    for content in ({"state_dict": wrapped}, wrapped, {"model": state, "optimizer": {"lr": 1}}):
        torch.save(content, tmp_path / "x.pth")
        import_weights(tmp_path / "x.pth", tmp_path / "ours", HEADS)
        found = load_file(tmp_path / "ours/encoder.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    torch.save({name: value.bfloat16() for name, value in state.items()}, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "ours", HEADS.over(Said(height=16, width=24)))
    found = load_file(tmp_path / "ours/encoder.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert torch.equal(found["norm.weight"], state["norm.weight"].bfloat16().float())


def test_sharded_weights_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    state = timm_vit().state_dict()
    names = sorted(state)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for part, some in parts.items():
        save_file({name: state[name] for name in some}, folder / part)
    index = {"weight_map": {name: part for part, some in parts.items() for name in some}}
    write_json(folder / "model.safetensors.index.json", index)
    found = import_weights(folder, tmp_path / "ours", HEADS)
    assert sorted(found.weights.sha256) == ["a.safetensors", "b.safetensors"]
    (tmp_path / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes())
    (folder / "b.safetensors").unlink()
    outside = {"weight_map": {"x": "../b.safetensors", "y": "a.safetensors"}}
    write_json(folder / "model.safetensors.index.json", outside)
    with pytest.raises(CheckpointError, match=r"sharded/b\.safetensors cannot be read"):
        import_weights(folder, tmp_path / "ours", HEADS)


def test_inspect_says_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    save_file(timm_vit(img_size=(24, 24)).state_dict(), tmp_path / "vit.safetensors")
    said = dict(inspect_weights(tmp_path / "vit.safetensors", HEADS))
    assert said["images"].startswith("3 x 24 x 24")
    assert said["patches"] == "4 x 4 pixels, grid 6 x 6"
    assert said["encoder"] == "width 32, depth 2, 4 heads, mlp ratio 3, sincos positions"
    assert said["decoder"] == "none"
    assert "ImageNet" in said["pixels"]
    found = import_weights(tmp_path / "vit.safetensors", tmp_path / "ours", HEADS)
    own = dict(inspect_weights(tmp_path / "ours"))
    assert own["encoder"] == said["encoder"]
    assert found.weights.sha256["vit.safetensors"] in own["imported from"]
    with pytest.raises(CheckpointError, match="Maestro's own already"):
        import_weights(tmp_path / "ours", tmp_path / "again")
