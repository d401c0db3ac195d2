"""Latency and throughput of every contender as bars, a row of axes for each device."""

from pathlib import Path
from typing import Any

from mae.evaluation.drawing import write_png
from mae.export.speed import COMPILED, TORCH, Speed, Timing

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = {
    TORCH: "#999999",
    COMPILED: "#E69F00",
    "fp32": "#0072B2",
    "fp16": "#56B4E9",
    "int8": "#009E73",
    "int8_static": "#CC79A7",
}
_ANOTHER = "#000000"
_INK = "#444444"


def draw_speed(speed: Speed, path: Path) -> None:
    """Write a PNG: left the milliseconds of a call at the smallest batch, up to the 95th and 99th
    percentile, right the images per second at each contender's best batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    latencies, throughputs = speed.latencies, speed.throughputs
    devices = list(dict.fromkeys(timing.device for timing in speed.timings))
    counts = [sum(timing.device == device for timing in latencies) for device in devices]
    figure = Figure(figsize=(9, 0.9 * len(devices) + 0.34 * sum(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(devices), 2, squeeze=False, height_ratios=counts)
    for (left, right), device in zip(grid, devices, strict=True):
        _draw_latencies(left, [one for one in latencies if one.device == device])
        at = f"{device.upper()}: milliseconds at batch {speed.smallest_batch}"
        left.set_title(f"{at}, up to p95 (|) and p99 (•)", fontsize=9, loc="left")
        _draw_throughputs(right, [one for one in throughputs if one.device == device])
        right.set_title("images per second at the best batch", fontsize=9, loc="left")
    write_png(figure, path)


def _draw_latencies(axes: Any, timings: list[Timing]) -> None:
    medians, ends = [one.p50_ms for one in timings], [one.p99_ms for one in timings]
    _draw_bars(axes, timings, medians, ends, [f"{value:.3g}" for value in medians])
    places = range(len(timings))
    axes.hlines(places, medians, ends, color=_INK, linewidth=1)
    axes.scatter([one.p95_ms for one in timings], places, marker="|", s=70, color=_INK)
    axes.scatter(ends, places, marker=".", s=36, color=_INK)


def _draw_throughputs(axes: Any, timings: list[Timing]) -> None:
    values = [one.images_per_second for one in timings]
    labels = [f"{one.images_per_second:,.0f} at {one.batch}" for one in timings]
    _draw_bars(axes, timings, values, values, labels)
    axes.set_yticks(range(len(timings)), [""] * len(timings))


def _draw_bars(
    axes: Any, timings: list[Timing], values: list[float], ends: list[float], labels: list[str]
) -> None:
    """Draw a bar for each, with its label behind `ends`, the first at the top."""
    places = range(len(timings))
    axes.barh(places, values, 0.62, color=[_COLOURS.get(t.contender, _ANOTHER) for t in timings])
    axes.set_yticks(places, [one.label for one in timings])
    axes.invert_yaxis()
    for place, end, label in zip(places, ends, labels, strict=True):
        axes.annotate(
            label, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_xlim(0, 1.3 * max(ends))
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
