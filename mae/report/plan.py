"""What follows from params.yaml: patches, learning rates, steps, before anything is run."""

from dataclasses import dataclass
from pathlib import Path

from mae.data.dataset import read_dataset_info
from mae.errors import DataError
from mae.model.methods import resolve_method
from mae.params import LabelBudget, MaskParams, Params
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
    evaluate = params.evaluate
    rows = [("pretrain", params.pretrain.describe(known.images))]
    if known.classes > 1:
        rows.append(("linear probe", evaluate.linear_probe.describe(known.images)))
        rows += [_finetuning(params, budget, known) for budget in evaluate.finetune.budgets]
    return rows


def _finetuning(params: Params, budget: LabelBudget, known: Known) -> tuple[str, str]:
    each = budget.labels_per_class
    labels = known.images if each is None else min(known.images, each * known.classes)
    name = "fine-tune, all" if each is None else f"fine-tune, {each} each"
    return name, params.evaluate.finetune.optim(budget).describe(labels)
