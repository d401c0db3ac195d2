"""What follows from params.yaml: patches, learning rates, steps, before anything is run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mae.data.dataset import read_dataset_info
from mae.errors import DataError
from mae.model.methods import resolve_method
from mae.params import LabelBudget, MaskParams, OptimParams, Params
from mae.report.templating import channels


@dataclass(frozen=True)
class Known:
    """What is known of the training images: how many, and of how many classes (0: no labels)."""

    images: int
    classes: int


def sharded(folder: Path) -> Known | None:
    """Return what a sharded dataset holds to learn from, or None where there is none yet."""
    try:
        info = read_dataset_info(folder)
    except DataError:
        return None
    images = info.splits.get("train", 0)
    return Known(images, len(info.classes)) if images else None


def plan_of(params: Params, known: Known | None) -> list[tuple[str, str]]:
    """Return (what, how much) in words; learning rates and steps need the number of images."""
    model = resolve_method(params.model)
    ph, pw = model.patch_size
    patches = model.grid[0] * model.grid[1]
    visible = sorted({model.mask.kept(patches, ratio) for ratio in _ratios(model.mask)})
    rows = [
        (
            "images",
            f"{model.height} x {model.width} (height x width), "
            f"{channels(params.data.channels)} of {params.data.bit_depth} bits",
        ),
        (
            "patches",
            f"{patches} of {ph} x {pw}, {' to '.join(map(str, visible))} visible to the encoder",
        ),
        ("encoder", f"width {model.dim}, depth {model.depth}, {model.heads} heads"),
        ("decoder", f"width {model.decoder.width}, depth {model.decoder.depth}"),
    ]
    return rows if known is None else rows + _schedules(params, known)


def _ratios(mask: MaskParams) -> tuple[float, float]:
    return mask.ratio, mask.last_ratio


def _schedules(params: Params, known: Known) -> list[tuple[str, str]]:
    rows = [("pretrain", params.pretrain.describe(known.images))]
    return rows + _probing(params, known) + _tuning(params, known) if known.classes > 1 else rows


def _probing(params: Params, known: Known) -> list[tuple[str, str]]:
    probe = params.evaluate.linear_probe
    if "linear_probe" not in params.evaluate.protocols:
        return []
    return [("linear probe", _at_the_best(probe.blr, probe.optim, known.images))]


def _tuning(params: Params, known: Known) -> list[tuple[str, str]]:
    """Return a row for each budget of labels that the encoder, or a part of it, learns from."""
    evaluate = params.evaluate
    finetune = evaluate.finetune
    budgets: list[tuple[str, str, LabelBudget, tuple[float, ...]]] = [
        *(("finetune", "fine-tune", budget, finetune.blr) for budget in finetune.budgets),
        ("partial", "partial", evaluate.partial, finetune.blr),
        ("lora", "adapters", evaluate.lora, evaluate.lora.blr),
    ]
    return [
        (f"{name}, {_each(budget)}", _at_the_best(blrs, partial(finetune.optim, budget), labels))
        for protocol, name, budget, blrs in budgets
        if protocol in evaluate.protocols
        for labels in [_labels(budget, known)]
    ]


def _at_the_best(
    blrs: tuple[float, ...], optim: Callable[[float], OptimParams], images: int
) -> str:
    """Describe the schedule at the first rate, and name the others that minival chooses from."""
    described = optim(blrs[0]).describe(images)
    if len(blrs) == 1:
        return described
    others = ", ".join(f"{blr:g}" for blr in blrs[1:])
    return f"{described}; or blr {others}: the best on minival"


def _each(budget: LabelBudget) -> str:
    return "all" if budget.labels_per_class is None else f"{budget.labels_per_class} each"


def _labels(budget: LabelBudget, known: Known) -> int:
    each = budget.labels_per_class
    return known.images if each is None else min(known.images, each * known.classes)
