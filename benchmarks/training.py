"""Images/s of whole training loops: Maestro's, transformers' Trainer and lightly under Lightning.

    python -m benchmarks.training [--cases tiny base] [--precisions fp32 bf16]
        [--inputs files memory] [--rounds 3] [--device cpu] [--json FILE]

Each loop is what its library gives its users: ours reads LMDB shards, keeps a journal and
checkpoints; transformers' Trainer and Lightning read the same JPEGs through torchvision's
ImageFolder and the reference transform (random resized crop, flip), with as many worker processes
as we have threads, and log and save as they do by default. `memory` gives every loop the same
batch over and over, which leaves the loop and the model. Every turn is a process of its own that
trains for some steps and times those after the first few; the contestants take turns, and medians
count. Model, weights, batch and optimiser are those of benchmarks/pretraining_step.py, which
shows first that all three compute the same loss.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import photos
from benchmarks.peers import Recipe
from benchmarks.pretraining_step import (
    CASES,
    OURS,
    context,
    losses_agree,
    median_ratio,
    model_params,
)
from mae.model.autoencoder import build_autoencoder
from mae.params import Params, parse_params, read_params

ROOT = Path(__file__).parents[1]
CONTESTANTS = (OURS, "transformers", "lightly")
WORKERS = 2
WARM_UP = 4  # steps: processes start, caches fill, kernels are chosen
STEPS = {"tiny": 16, "base": 6}
IMAGES = {"tiny": (2048, 96, 128), "base": (256, 375, 500)}  # how many, and their height and width
CROP_AREA = (0.2, 1.0)
MEAN = STD = (0.5, 0.5, 0.5)


# --- data ---------------------------------------------------------------------------------------


def write_photos(folder: Path, case: str, at_least: int = 0) -> None:
    count, height, width = IMAGES[case]
    count = max(count, at_least)
    (folder / "photos").mkdir(parents=True)
    for number in range(count):
        content = photos.encoded(photos.photo(number, height, width), quality=90)
        (folder / "photos" / f"{number:05d}.jpg").write_bytes(content)


def params_of(case: str, precision: str, folder: Path, device: str) -> Params:
    """Our parameters for a run of WARM_UP + STEPS steps on the photographs in `folder`."""
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["data"] |= {
        "images": {"source": "folder", "path": str(folder / case)},
        "splits": {"val": 0.0, "test": 0.0, "stratify": False},
        "channels": 3,
    }
    content["model"] = model_params(CASES[case]).model_dump(mode="json")
    batch = CASES[case]["batch"]
    epochs = -(-(WARM_UP + STEPS[case]) * batch // IMAGES[case][0]) + 1
    content["pretrain"] |= {
        "epochs": epochs,
        "batch": batch,
        "precision": precision,
        "augment": {"crop_area": CROP_AREA, "crop_aspect": [0.75, 1.333], "flip": True},
    }
    content["runtime"] |= {"workers": WORKERS, "cache_mb": 0, "device": device}
    return parse_params(content)


def recipe(case: str) -> Recipe:
    model = model_params(CASES[case])
    return Recipe(model.height, model.width, CROP_AREA, MEAN, STD, CASES[case]["batch"], WORKERS)


class SameBatch(torch.utils.data.Dataset):
    """Endlessly the same images, already made."""

    def __init__(self, case: str) -> None:
        model, batch = model_params(CASES[case]), CASES[case]["batch"]
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, 3, model.height, model.width, generator=generator)

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], 0


def peers_dataset(case: str, inputs: str, folder: Path) -> torch.utils.data.Dataset:
    if inputs == "memory":
        return SameBatch(case)
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(folder / case), recipe(case).transform())


# --- the loops ----------------------------------------------------------------------------------


class Stopwatch:
    """Takes the time at the end of every step."""

    def __init__(self, steps: int, device: str) -> None:
        self.steps = steps
        self._device = device
        self.times: list[float] = []

    def lap(self) -> bool:
        """Return whether all steps are done."""
        if self._device == "cuda" and len(self.times) + 1 in (WARM_UP, WARM_UP + self.steps):
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return len(self.times) >= WARM_UP + self.steps

    @property
    def seconds(self) -> float:
        return self.times[WARM_UP + self.steps - 1] - self.times[WARM_UP - 1]


class Done(Exception):
    pass


def same_batch_for_ever(batch: int, height: int, width: int) -> None:
    """Make our loader give one batch, already decoded, again and again."""
    from mae.data.loading.batch import Batch
    from mae.training import pretraining

    images = torch.randint(0, 256, (batch, 3, height, width)).to(torch.uint8)
    same = Batch(images, torch.arange(batch), torch.full((batch,), -1))

    def batches(self: Any, start: int, stop: int) -> Iterator[Batch]:
        return (same for _ in range(start, stop))

    pretraining.TrainLoader.batches = batches  # type: ignore[method-assign,assignment]


def train_maestro(case: str, precision: str, inputs: str, folder: Path, watch: Stopwatch) -> None:
    from mae.training import pretraining, trainer
    from mae.training.devices import Place, resolve_device

    params = params_of(case, precision, folder, watch._device)
    device = resolve_device(params.runtime.device)
    take_step = trainer.Trainer._train_step

    def timed(self: Any, step: int, batch: Any) -> None:
        take_step(self, step, batch)
        if watch.lap():
            raise Done

    trainer.Trainer._train_step = timed  # type: ignore[method-assign]
    if inputs == "memory":
        same_batch_for_ever(CASES[case]["batch"], params.model.height, params.model.width)
    with tempfile.TemporaryDirectory() as runs:
        pretraining.pretrain(params, folder / f"{case}-shards", Path(runs), Place(device))


def train_transformers(
    case: str, precision: str, inputs: str, folder: Path, watch: Stopwatch
) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from benchmarks.mae_peers import hf_mae

    class Lap(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = watch.lap()

    def collate(pairs: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([image for image, _ in pairs])}

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=CASES[case]["batch"],
            max_steps=WARM_UP + watch.steps,
            learning_rate=1e-4,
            optim="adamw_torch_fused",
            bf16=precision == "bf16",
            use_cpu=watch._device == "cpu",
            dataloader_num_workers=WORKERS,
            dataloader_persistent_workers=True,
            remove_unused_columns=False,
            report_to=[],
        )
        ours = build_autoencoder(model_params(CASES[case]), channels=3, seed=0)
        Trainer(
            model=hf_mae(ours),
            args=arguments,
            train_dataset=peers_dataset(case, inputs, folder),
            data_collator=collate,
            callbacks=[Lap()],
        ).train()


def train_lightly(case: str, precision: str, inputs: str, folder: Path, watch: Stopwatch) -> None:
    import pytorch_lightning

    from benchmarks.mae_peers import LightlyMae

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            ours = build_autoencoder(model_params(CASES[case]), channels=3, seed=0)
            self.mae = LightlyMae(ours)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = self.mae(batch[0], None)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            learns = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(learns, lr=1e-4, betas=(0.9, 0.95), fused=True)

    class Lap(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *more: Any) -> None:
            if watch.lap():
                trainer.should_stop = True

    loader = torch.utils.data.DataLoader(
        peers_dataset(case, inputs, folder),
        batch_size=CASES[case]["batch"],
        shuffle=inputs == "files",
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    with tempfile.TemporaryDirectory() as out:
        pytorch_lightning.Trainer(
            default_root_dir=out,
            max_steps=WARM_UP + watch.steps,
            accelerator="gpu" if watch._device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            callbacks=[Lap()],
            enable_progress_bar=True,
        ).fit(Module(), loader)


LOOPS: dict[str, Callable[[str, str, str, Path, Stopwatch], None]] = {
    OURS: train_maestro,
    "transformers": train_transformers,
    "lightly": train_lightly,
}


# --- turns --------------------------------------------------------------------------------------


def one_turn(name: str, arguments: argparse.Namespace) -> None:
    """Train in this process and print the seconds that its steps took."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    [case], [precision], [inputs] = arguments.cases, arguments.precisions, arguments.inputs
    watch = Stopwatch(STEPS[case], arguments.device)
    with suppress(Done):
        LOOPS[name](case, precision, inputs, arguments.folder, watch)
    print(json.dumps({"seconds": watch.seconds}))


def seconds_of(name: str, row: dict[str, str], arguments: argparse.Namespace) -> float:
    command = [
        *(sys.executable, "-m", "benchmarks.training", "--turn", name),
        *("--cases", row["case"], "--precisions", row["precision"], "--inputs", row["inputs"]),
        *("--folder", str(arguments.folder), "--device", arguments.device),
        *("--threads", str(arguments.threads)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def compare(row: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for turn in range(arguments.rounds):
        shift = turn % len(CONTESTANTS)
        for name in CONTESTANTS[shift:] + CONTESTANTS[:shift]:
            seconds[name].append(seconds_of(name, row, arguments))
    images = STEPS[row["case"]] * CASES[row["case"]]["batch"]
    rates = {name: round(images / statistics.median(taken), 2) for name, taken in seconds.items()}
    peer = max(CONTESTANTS[1:], key=lambda name: rates[name])
    return {
        **row,
        "title": CASES[row["case"]]["title"],
        "batch": CASES[row["case"]]["batch"],
        "images_per_second": rates,
        "best_peer": peer,
        "ratio": round(median_ratio(seconds, OURS, peer), 3),
    }


def prepare(case: str, folder: Path, device: str) -> dict[str, float]:
    """Write photographs and shards, and return the losses that the three agree on."""
    from mae.data.sharding.run import shard_dataset

    write_photos(folder / case, case)
    params = params_of(case, "fp32", folder, device)
    shard_dataset("images", params.data, params.seed, folder / f"{case}-shards")
    ours = build_autoencoder(params.model, channels=3, seed=0)
    images = SameBatch(case).images
    return losses_agree(ours, images, torch.arange(len(images)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"]
    )
    parser.add_argument(
        "--inputs", nargs="+", choices=("files", "memory"), default=["files", "memory"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        one_turn(arguments.turn, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        losses = {
            case: prepare(case, arguments.folder, arguments.device) for case in arguments.cases
        }
        rows = []
        for case in arguments.cases:
            for precision in arguments.precisions:
                for inputs in arguments.inputs:
                    row = {"case": case, "precision": precision, "inputs": inputs}
                    rows.append(compare(row, arguments) | {"float32_loss": losses[case]})
                    print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        device = torch.device(arguments.device)
        content = {"context": context(device, arguments.threads, arguments.rounds), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
