"""How much of a device our training loop uses: images/s, FLOP utilisation, share of waiting.

    python -m benchmarks.utilisation [--cases base large] [--batches 64 128 256 512]
        [--inputs memory files] [--precision bf16] [--compile] [--device cuda] [--json FILE]

Each run is a whole pretraining of some steps in a process of its own: from shards of 500 x 375
JPEGs (`files`), or on one batch again and again (`memory`), which separates the loop from the
data. The numbers are those of the run's own journal, over the intervals after the first: model
FLOPs (three times the forward pass) over the rate of a matrix product of the same precision,
measured by that very run. A batch that does not fit is said, and larger ones are left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretraining_step import CASES as STEP_CASES
from benchmarks.pretraining_step import model_params
from benchmarks.training import CROP_AREA, ROOT, same_batch_for_ever, write_photos
from mae.params import Params, parse_params, read_params

CASES: dict[str, dict[str, Any]] = {
    **STEP_CASES,
    "large": {
        "title": "ViT-L/16, 224 px, decoder 512 x 8",
        "model": {**STEP_CASES["base"]["model"], "size": "large"},
    },
}
STEPS, LOG_EVERY = 60, 10
MEASURED = ("images_per_second", "flop_utilisation", "wait_share", "peak_memory_mb")


def params_of(arguments: argparse.Namespace, case: str, batch: int, images: int) -> Params:
    content = read_params(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    content["data"] |= {
        "images": {"source": "folder", "path": str(arguments.folder / "base")},
        "splits": {"val": 0.1, "test": 0.0, "stratify": False},
        "channels": 3,
    }
    content["model"] = model_params(CASES[case]).model_dump(mode="json")
    content["pretrain"] |= {
        "epochs": -(-STEPS // max(1, images // batch)),
        "batch": batch,
        "precision": arguments.precision,
        "compile": arguments.compile,
        "augment": {"crop_area": CROP_AREA, "crop_aspect": [0.75, 1.333], "flip": True},
    }
    content["runtime"] |= {
        "workers": arguments.workers,
        "device": arguments.device,
        "log_every": LOG_EVERY,
        "checkpoint_minutes": 1e6,
    }
    return parse_params(content)


def one_run(arguments: argparse.Namespace) -> None:
    """Train in this process, and print the medians of its journal."""
    from mae.data.reader import ShardReader
    from mae.training.devices import Place, resolve_device
    from mae.training.journal import read_journal
    from mae.training.pretraining import pretrain

    [case], [batch], [inputs] = arguments.cases, arguments.batches, arguments.inputs
    shards = arguments.folder / "shards"
    params = params_of(arguments, case, batch, len(ShardReader(shards, "train")))
    if inputs == "memory":
        same_batch_for_ever(batch, params.model.height, params.model.width)
    with tempfile.TemporaryDirectory() as runs:
        done = pretrain(params, shards, Path(runs), Place(resolve_device(arguments.device)))
        lines = read_journal(done.folder)[1:]
    print(json.dumps({name: statistics.median(line[name] for line in lines) for name in MEASURED}))


def measured(arguments: argparse.Namespace, case: str, inputs: str, batch: int) -> dict[str, Any]:
    """Return a run's medians, or why there are none."""
    command = [
        *(sys.executable, "-m", "benchmarks.utilisation", "--run", "--cases", case),
        *("--inputs", inputs, "--batches", str(batch), "--precision", arguments.precision),
        *("--device", arguments.device, "--workers", str(arguments.workers)),
        *("--folder", str(arguments.folder), *(["--compile"] if arguments.compile else [])),
    ]
    row = {"case": CASES[case]["title"], "inputs": inputs, "batch": batch}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return row | json.loads(done.stdout.strip().splitlines()[-1])
    if "out of memory" in done.stderr:
        return row | {"failed": "out of memory"}
    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def prepare(arguments: argparse.Namespace) -> None:
    from mae.data.sharding.run import shard_dataset

    write_photos(arguments.folder / "base", "base", max(arguments.batches))
    params = params_of(arguments, arguments.cases[0], 1, 1)
    shard_dataset("images", params.data, params.seed, arguments.folder / "shards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["base", "large"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument(
        "--inputs", nargs="+", choices=("memory", "files"), default=["memory", "files"]
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        one_run(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        prepare(arguments)
        rows = []
        for case in arguments.cases:
            for inputs in arguments.inputs:
                for batch in sorted(arguments.batches):
                    rows.append(measured(arguments, case, inputs, batch))
                    print(json.dumps(rows[-1]), flush=True)
                    if "failed" in rows[-1]:
                        break
    if arguments.json:
        name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
        content = {
            "context": {"device": name, "torch": torch.__version__, "steps": STEPS}
            | {key: getattr(arguments, key) for key in ("precision", "compile", "workers")},
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
