"""The pretraining curve as SVG that takes the colours of the page it is in."""

import io
from typing import Any

from mae.report.findings import LossCurve

# Colours matplotlib knows, each replaced by what the page calls it.
_ROLES = {"#010203": "var(--ink-soft)", "#040506": "var(--accent)", "#070809": "var(--line)"}
_INK, _ACCENT, _LINE = _ROLES


def loss_chart(curve: LossCurve) -> str:
    """Return inline SVG: the loss of each journal line, and its running mean."""
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
        axes.plot(curve.steps, curve.losses, color=_ACCENT, linewidth=1, alpha=0.35)
        axes.plot(curve.steps, running_mean(curve.losses), color=_ACCENT, linewidth=2)
        axes.set_xlabel("step")
        axes.set_ylabel("loss on hidden patches")
        axes.grid(axis="y", linewidth=0.8)
        axes.margins(x=0.01)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return _inline(buffer.getvalue())


def running_mean(values: list[float]) -> list[float]:
    """Return the mean of the values around each, over about a twentieth of all."""
    reach = max(1, len(values) // 40)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _inline(svg: str) -> str:
    """Cut the file's head off, let the page decide the width, and name colours by role."""
    svg = svg[svg.index("<svg") :]
    head, _, rest = svg.partition(">")
    view = head[head.index("viewBox") :].split('"')[1]
    label = 'role="img" aria-label="Pretraining loss by step"'
    svg = f'<svg viewBox="{view}" xmlns="http://www.w3.org/2000/svg" {label}>{rest}'
    svg = svg.replace("xlink:href", "href")
    for colour, role in _ROLES.items():
        svg = svg.replace(colour, role)
    return svg
