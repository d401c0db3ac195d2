"""The picture of an inspection: images, histograms, classes, what was left out, copies."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data.sharding.splits import SPLITS
from mae.data.validation.bins import SCALES, ColumnProfile, Logarithmic
from mae.evaluation.scene_pictures import draw_scene
from mae.files import replacing_file
from mae.report.inspection import PAIRS, Inspection, Pair, Tile, brief, most
from mae.report.pictures import displayed
from mae.report.templating import channels

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

_WIDTH = 13.0
_INK = "#2b2f33"
_MUTED = "#6b7280"
_BAR = "#4f7f9c"
_LEFT_OUT = "#b46a5c"
_SPLIT_COLOURS = {"train": "#4f7f9c", "val": "#e0a244", "test": "#7f9e5c"}
_THUMBNAIL = 160
_FINEST = 40
_SCENES_PER_ROW = 4
_FEWEST_BARS = 6
# With more, the names would hide what they stand for; the colours still tell.
_NAMED_OBJECTS = 12

# Height in inches and what draws it.
Part = tuple[float, Callable[["SubFigure"], None]]


def draw_inspection(found: Inspection, path: Path) -> None:
    """Write the PNG, from top to bottom: heading, images, histograms, classes, copies."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = _parts(found)
    settings: dict[Any, Any] = {
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": "#c4c9cf",
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _MUTED,
        "ytick.color": _INK,
    }
    with matplotlib.rc_context(settings):
        heights = [height for height, _ in parts]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        areas = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
        for area, (_, draw) in zip(areas, parts, strict=True):
            draw(area)
        with replacing_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def _parts(found: Inspection) -> list[Part]:
    parts: list[Part] = [(0.8, lambda area: _heading(area, found))]
    if found.info.dataset == "scenes":
        rows = -(-len(found.rows[0][1]) // _SCENES_PER_ROW)
        parts.append((2.6 * rows, lambda area: _scenes(area, found.rows[0][1], rows)))
    else:
        parts.append((1.25 * len(found.rows) + 0.3, lambda area: _images(area, found)))
    parts.append((2.3, lambda area: _histograms(area, found)))
    if found.classes or found.profile.reasons:
        bars = max(len(found.classes) + bool(found.unlisted), len(found.profile.reasons))
        parts.append((0.21 * max(bars, _FEWEST_BARS) + 0.7, lambda area: _counts(area, found)))
    if found.pairs:
        parts.append((1.9, lambda area: _pairs(area, found.pairs)))
    return parts


def _heading(area: "SubFigure", found: Inspection) -> None:
    info, totals = found.info, found.profile.totals
    splits = ", ".join(f"{split} {info.splits.get(split, 0):,}" for split in SPLITS)
    depth = f"{channels(info.statistics.channels)} of {info.statistics.bit_depth} bits"
    title = textwrap.shorten(f"{info.dataset}: {info.layout}", 100, placeholder=" ...")
    area.text(0.01, 0.72, title, fontsize=14, va="center")
    words = [f"{totals['accepted']:,} accepted of {totals['seen']:,} ({splits})", depth]
    words += [f"{totals['quarantined']:,} quarantined", f"{totals['set_aside']:,} set aside"]
    words += [f"{totals['duplicates']:,} of the same bytes", f"{totals['blank']:,} blank"]
    words += [f"{totals['near_duplicates']:,} of the same look"]
    area.text(0.01, 0.25, "; ".join(words), fontsize=9.5, color=_MUTED, va="center")


def _images(area: "SubFigure", found: Inspection) -> None:
    columns = max(len(tiles) for _, tiles in found.rows)
    labelled = any(name for name, _ in found.rows)
    stretched = _is_stretched(found.rows[0][1][0].pixels) if found.rows[0][1] else False
    title = f"{found.split} images, chosen by a hash" + (", one class a row" if labelled else "")
    title += "; contrast stretched to the 1st and 99th percentile" if stretched else ""
    area.suptitle(title, x=0.01, ha="left", fontsize=9, color=_MUTED)
    axes = area.subplots(len(found.rows), max(columns, 1), squeeze=False)
    for row, (name, tiles) in zip(axes, found.rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, tile in zip(row, tiles, strict=False):
            axis.imshow(_thumbnail(tile.pixels), interpolation="nearest")
        if name:
            label = textwrap.shorten(name, 18, placeholder="...") or name[:18]
            where = {"transform": row[0].transAxes, "ha": "right", "va": "center"}
            row[0].text(-0.06, 0.5, label, fontsize=8.5, **where)


def _scenes(area: "SubFigure", tiles: list[Tile], rows: int) -> None:
    axes = area.subplots(rows, _SCENES_PER_ROW, squeeze=False).ravel()
    names = sorted({one["category"] for tile in tiles for one in tile.annotations})
    for axis in axes:
        axis.set_axis_off()
    for axis, tile in zip(axes, tiles, strict=False):
        draw_scene(axis, tile.pixels, tile.annotations, names)
        if len(names) == 1 or len(tile.annotations) > _NAMED_OBJECTS:
            for text in list(axis.texts):
                text.remove()


def _histograms(area: "SubFigure", found: Inspection) -> None:
    columns = found.histograms
    titles = {"mean": "brightness (mean pixel)", "entropy": "entropy (bits)"}
    titles |= {"height": "height (pixels)", "width": "width (pixels)"}
    for axis, (name, column) in zip(area.subplots(1, len(columns)), columns.items(), strict=True):
        axis.set_title(titles.get(name, name), loc="left")
        if column.count:
            _histogram(axis, name, column)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)


def _histogram(axis: Any, name: str, column: ColumnProfile) -> None:
    """Bars of bins put together until they are few enough for the eye."""
    from matplotlib.ticker import NullLocator

    scale = SCALES[name]
    first, last = min(column.bins), max(column.bins)
    step = -(-(last - first + 1) // _FINEST)
    counts = np.zeros((last - first) // step + 1)
    for number, count in column.bins.items():
        counts[(number - first) // step] += count
    edges = [scale.lower_edge(first + step * index) for index in range(len(counts) + 1)]
    axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_BAR)
    if column.low == column.high:
        axis.set_xticks([(edges[0] + edges[-1]) / 2], [brief(column.low)])
        axis.set_xlim(edges[0] - 2 * (edges[-1] - edges[0]), edges[-1] * 3 - edges[0] * 2)
        return
    if isinstance(scale, Logarithmic):
        axis.set_xscale("log")
        ticks = [float(f"{tick:.2g}") for tick in np.geomspace(edges[0], edges[-1], 5)[1:-1]]
        axis.set_xticks(ticks, [brief(tick) for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(edges[0], edges[-1])
    text = f"{brief(column.low)} to {brief(column.high)}, median {brief(column.quantiles[0.5])}"
    axis.set_xlabel(text, color=_MUTED, fontsize=8)


def _counts(area: "SubFigure", found: Inspection) -> None:
    left, right = area.subplots(1, 2, width_ratios=[2, 1])
    _class_bars(left, found)
    _reason_bars(right, found.profile.reasons)


def _class_bars(axis: Any, found: Inspection) -> None:
    what = "images" if found.info.classes else "objects"
    rows = list(found.classes)
    if not rows:
        axis.set_axis_off()
        axis.text(0, 0.5, "no classes", color=_MUTED)
        return
    names = [textwrap.shorten(name, 30, placeholder="...") or name[:30] for name, _ in rows]
    places = [float(number) for number in range(len(rows))]
    if found.unlisted:
        half = len(rows) // 2
        places = [place + (place >= half) for place in places]
        axis.text(0, half, f"... {found.unlisted:,} more classes ...", color=_MUTED, va="center")
    before = np.zeros(len(rows))
    for split in SPLITS:
        counts = np.array([counts[split] for _, counts in rows], dtype=float)
        colour = _SPLIT_COLOURS[split]
        axis.barh(places, counts, 0.75, left=before, color=colour, label=split)
        before += counts
    axis.set_yticks(places, names)
    axis.set_ylim(max(places[-1] + 1, _FEWEST_BARS) - 0.5, -0.5)
    axis.set_title(f"{what} of each class", loc="left")
    axis.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    axis.locator_params(axis="x", integer=True)


def _reason_bars(axis: Any, reasons: dict[str, int]) -> None:
    if not reasons:
        axis.set_axis_off()
        axis.text(0, 0.5, "nothing was left out", color=_MUTED)
        return
    names, counts = zip(*most(reasons), strict=True)
    bars = axis.barh(names, counts, 0.75, color=_LEFT_OUT)
    axis.bar_label(bars, [f" {count:,}" for count in counts], color=_MUTED, fontsize=8)
    axis.set_ylim(max(len(names), _FEWEST_BARS) - 0.5, -0.5)
    axis.set_xticks([])
    axis.margins(x=0.2)
    axis.set_title("left out, by reason", loc="left")


def _pairs(area: "SubFigure", pairs: list[Pair]) -> None:
    # As many places as there can be pairs, so that one alone is not drawn large.
    places = area.subfigures(1, PAIRS, wspace=0.03, squeeze=False)[0]
    for piece, pair in zip(places, pairs, strict=False):
        piece.suptitle(pair.kind, fontsize=8)
        for axis, tile, key in zip(
            piece.subplots(1, 2),
            (pair.first, pair.copy),
            (pair.first.key, pair.copy_key),
            strict=True,
        ):
            axis.imshow(_thumbnail((tile or pair.first).pixels), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(tile is None)
            axis.set_xlabel(key[-15:], fontsize=7, color=_MUTED)
            if tile is None:
                axis.images[0].set_alpha(0.0)
                middle = {"transform": axis.transAxes, "ha": "center", "va": "center"}
                axis.text(0.5, 0.5, "left\nout", color=_MUTED, **middle)


def _is_stretched(pixels: NDArray[Any]) -> bool:
    """16 bits are seldom used to the full, and bands are not colours."""
    return pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3)


def _thumbnail(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, C) of any depth -> RGB uint8, no side above the thumbnail's."""
    planes = pixels.transpose(2, 0, 1).astype(np.float64) / np.iinfo(pixels.dtype).max
    if _is_stretched(pixels):
        low, high = np.percentile(planes, [1, 99], axis=(1, 2), keepdims=True)
        planes = (planes - low) / np.maximum(high - low, 1e-9)
    image = Image.fromarray(displayed(planes))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)
