"""Curves of the pretraining run as SVG that takes the colours of the page it is in."""

import io
import re
from dataclasses import dataclass
from typing import Any

from mae.report.findings import Curve, Findings

# Colours matplotlib knows, each replaced by what the page calls it.
_ROLES = {
    "#010203": "var(--ink-soft)",
    "#040506": "var(--accent)",
    "#070809": "var(--line)",
    "#0a0b0c": "var(--second)",
}
_INK, _ACCENT, _LINE, _SECOND = _ROLES
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": _ACCENT, "linewidth": 2},
    {"color": _SECOND, "linewidth": 2, "linestyle": "--", "marker": "o", "markersize": 4},
)


@dataclass(frozen=True)
class Line:
    """Values by step. noisy: drawn faintly, below their running mean."""

    name: str
    steps: list[int]
    values: list[float]
    noisy: bool = False


@dataclass(frozen=True)
class Chart:
    """Inline SVG, and what it shows in words."""

    svg: str
    caption: str


def pretraining_charts(findings: Findings) -> list[Chart]:
    """Return the loss, and what was looked at beside it, where there is any."""
    losses, seen = findings.losses or Curve([], {}), findings.observed or Curve([], {})
    lines = [
        Line("training images", *losses.points("loss"), noisy=True),
        Line("held-out images", *seen.points("val_loss")),
    ]
    ranks = [
        Line("RankMe", *seen.points("rank_me")),
        Line("effective rank", *seen.points("effective_rank")),
    ]
    steps, accuracies = seen.points("knn_accuracy")
    voted = [Line("k-NN", steps, [100 * share for share in accuracies])]
    charts = [
        line_chart(lines, "loss", "The loss by step"),
        line_chart(ranks, "directions", "Directions that the features of held-out images fill"),
        line_chart(voted, "%", "Accuracy of k-NN on held-out images, with few neighbours to ask"),
    ]
    return [chart for chart in charts if chart is not None]


def line_chart(lines: list[Line], unit: str, caption: str) -> Chart | None:
    """Draw up to two lines that have points; None where there is none."""
    shown = [line for line in lines if line.steps]
    if not shown:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "maestro",
        "font.size": 10.5,
        "font.family": "sans-serif",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(settings):
        figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
        for line, style in zip(shown, _STYLES, strict=False):
            values = line.values
            if line.noisy:
                axes.plot(line.steps, values, color=style["color"], linewidth=1, alpha=0.35)
                values = running_mean(values)
            axes.plot(line.steps, values, **style, label=line.name)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.grid(axis="y", linewidth=0.8)
        axes.margins(x=0.02)
        if len(shown) > 1:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return Chart(_inline(buffer.getvalue(), caption), caption)


def running_mean(values: list[float]) -> list[float]:
    """Return the mean of the values around each, over about a twentieth of all."""
    reach = max(1, len(values) // 40)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _inline(svg: str, caption: str) -> str:
    """Cut the file's head off, let the page decide the width, and name colours by role."""
    svg = svg[svg.index("<svg") :]
    head, _, rest = svg.partition(">")
    view = head[head.index("viewBox") :].split('"')[1]
    label = f'role="img" aria-label="{caption}"'
    svg = f'<svg viewBox="{view}" xmlns="http://www.w3.org/2000/svg" {label}>{rest}'
    svg = svg.replace("xlink:href", "href")
    for colour, role in _ROLES.items():
        svg = svg.replace(colour, role)
    return _own_names(svg, caption)


def _own_names(svg: str, caption: str) -> str:
    """Make the names in a picture its own: several of them share one page."""
    prefix = re.sub(r"\W+", "-", caption.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
