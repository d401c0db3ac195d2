"""What each trick of the pretraining step gives: the step without it against the step with it.

    python -m benchmarks.step_tricks [--cases tiny base] [--precisions fp32 bf16] [--rounds 9]

Without a trick the step computes the same loss; it takes turns with the step as it is.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.pretraining_step import (
    CASES,
    DTYPES,
    context,
    median_ratio,
    model_params,
    seconds_of,
    step_of,
)
from mae.model import blocks, linear
from mae.model.autoencoder import build_autoencoder, masked_loss
from mae.model.encoder import Encoder
from mae.model.patches import Size, gather_patches


def _project_all(self: Encoder, patches: Tensor, grid: Size, keep: Tensor) -> Tensor:
    """Encoder.embed, given all patches: project them all, then pick."""
    tokens = self.patch_embed(patches) + self.positions_at(grid)
    return gather_patches(tokens, keep)


def _whole_last_block(block: Any, tokens: Tensor, last: int, mask: Tensor | None) -> Tensor:
    return block(tokens, mask)[:, tokens.shape[1] - last :]


@contextlib.contextmanager
def _all_patches_projected() -> Iterator[None]:
    def gather(patches: Tensor, indices: Tensor) -> Tensor:
        # The first call in a step picks what the encoder sees: let it have everything.
        return patches if indices is state["keep"] else gather_patches(patches, indices)

    state: dict[str, Tensor] = {}
    from mae.model import autoencoder as module

    draw = module.draw_masking

    def remember(*arguments: Any) -> Any:
        masking = draw(*arguments)
        state["keep"] = masking.keep
        return masking

    with (
        mock.patch.object(module, "draw_masking", remember),
        mock.patch.object(module, "gather_patches", gather),
        mock.patch.object(Encoder, "embed", _project_all),
    ):
        yield


TRICKS: dict[str, Callable[[], Any]] = {
    "float32 products by oneDNN": lambda: mock.patch.object(linear, "_mkl_is_slow", lambda: False),
    "attention by the faster kernel": lambda: mock.patch.object(
        blocks, "_fused_is_faster", lambda tokens: torch.is_autocast_enabled("cpu")
    ),
    "last decoder block for hidden patches alone": lambda: mock.patch.object(
        blocks, "_last_tokens", _whole_last_block
    ),
    "visible patches picked before they are projected": _all_patches_projected,
}


def measure(name: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    case = CASES[name]
    params = model_params(case)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case["batch"], 3, params.height, params.width, generator=generator)
    ids = torch.arange(case["batch"])
    model = build_autoencoder(params, channels=3, seed=0)

    def loss_of(images: Tensor, ids: Tensor) -> Tensor:
        return masked_loss(model(images, ids, seed=0, epoch=0))

    with torch.no_grad():
        whole = float(loss_of(images, ids))
        for trick, without in TRICKS.items():
            with without():
                if abs(float(loss_of(images, ids)) - whole) > 1e-5 * whole:
                    raise SystemExit(f"without '{trick}' another function is computed")
    step = step_of(model.train(), loss_of, images, ids, DTYPES[precision])
    step()
    times: dict[str, list[float]] = {trick: [] for trick in ("as it is", *TRICKS)}
    for _ in range(rounds):
        times["as it is"].append(seconds_of(step, images.device)[1])
        for trick, without in TRICKS.items():
            with without():
                times[trick].append(seconds_of(step, images.device)[1])
    return [
        {
            "case": case["title"],
            "precision": precision,
            "trick": trick,
            "gain_by_processor_time": round(median_ratio(times, "as it is", trick), 3),
        }
        for trick in TRICKS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.cases:
        for precision in arguments.precisions:
            for row in measure(name, precision, arguments.rounds):
                print(
                    f"{row['case']}, {precision}: {row['trick']}: "
                    f"{row['gain_by_processor_time']:.2f} x",
                    flush=True,
                )
                rows.append(row)
    if arguments.json:
        about = context(torch.device("cpu"), 1, arguments.rounds)
        arguments.json.write_text(json.dumps({"context": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
