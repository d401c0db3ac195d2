"""Accuracy against the number of labels: a picture, and the numbers in it as a table."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.evaluation.arms import words
from mae.evaluation.drawing import colours_of
from mae.evaluation.label_curves import Curves, Point
from mae.files import replacing_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"knn": "k-NN", "logistic": "Logistic regression", "finetune": "Fine-tuning"}
_INK, _LINE = "#444444", "#DDDDDD"


def draw_label_budget(curves: Curves, folder: Path) -> None:
    """Write label_budget.png and label_budget.csv into the folder."""
    _write_table(curves, folder / "label_budget.csv")
    _draw(curves, folder / "label_budget.png")


def _write_table(curves: Curves, path: Path) -> None:
    names = ("protocol", "arm", "share", "labels", "accuracy", "low", "high", "runs")
    with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        for protocol, arms in curves.by_protocol.items():
            for arm, points in arms.items():
                for point in points:
                    shares = [round(value, 6) for value in (point.mean, *point.interval)]
                    where = (protocol, arm, point.share, point.labels)
                    table.writerow([*where, *shares, len(point.runs)])


def _draw(curves: Curves, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    protocols = [name for name in _TITLES if name in curves.by_protocol]
    settings: dict[Any, Any] = {
        "font.size": 9.5,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _LINE,
    }
    with rc_context(settings):
        figure = Figure(figsize=(1.0 + 3.9 * len(protocols), 3.6), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
        for axes, protocol in zip(panels, protocols, strict=True):
            axes.set_title(_TITLES[protocol], fontsize=10.5, loc="left")
            _panel(axes, curves.by_protocol[protocol])
        panels[0].set_ylabel("top-1 accuracy on test, %")
        # After all panels are drawn: they share one axis, and the labels keep apart on it.
        for axes, protocol in zip(panels, protocols, strict=True):
            _label_lines(axes, curves.by_protocol[protocol])
        with replacing_file(path) as temporary:
            canvas.print_figure(temporary, dpi=150, format="png", metadata={"Software": None})


def _panel(axes: "Axes", arms: dict[str, list[Point]]) -> None:
    colours = colours_of(arms)
    for arm, points in arms.items():
        labels = [point.labels for point in points]
        means = [100 * point.mean for point in points]
        low, high = zip(*((100 * low, 100 * high) for low, high in _intervals(points)), strict=True)
        axes.fill_between(labels, low, high, color=colours[arm], alpha=0.15, linewidth=0)
        width = 2.2 if arm == "pretrained" else 1.5
        axes.plot(labels, means, color=colours[arm], linewidth=width, marker="o", markersize=3.5)
    points = next(iter(arms.values()))
    axes.set_xscale("log")
    axes.set_xticks(
        [point.labels for point in points],
        [f"{point.labels:,}\n{100 * point.share:g} %" for point in points],
    )
    axes.minorticks_off()
    axes.set_xlabel("labels")
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)


def _label_lines(axes: "Axes", arms: dict[str, list[Point]]) -> None:
    """Write each arm's name beside the end of its line, moved up or down where two would meet."""
    colours = colours_of(arms)
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 0.062
    ends = sorted((100 * points[-1].mean, arm) for arm, points in arms.items())
    height = bottom - gap
    for value, arm in ends:
        height = max(value, height + gap)
        axes.annotate(
            "pretrained" if arm == "pretrained" else words(arm),
            xy=(arms[arm][-1].labels, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colours[arm],
            fontweight="bold" if arm == "pretrained" else "normal",
            annotation_clip=False,
        )


def _intervals(points: list[Point]) -> list[tuple[float, float]]:
    return [point.interval for point in points]
