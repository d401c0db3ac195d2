"""What the pictures of all protocols share: a colour for each encoder, and how they are written."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mae.files import replacing_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = {"pretrained": "#0072B2", "random": "#999999", "scratch": "#D55E00", "pixels": "#E69F00"}
_OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#000000")


def colours_of(arms: Iterable[str]) -> dict[str, str]:
    """Return a colour for each arm, the same in every picture for those that all protocols know."""
    colours: dict[str, str] = {}
    for arm in arms:
        unknown = len(colours.keys() - _COLOURS.keys())
        colours[arm] = _COLOURS.get(arm) or _OTHERS[unknown % len(_OTHERS)]
    return colours


def write_png(figure: "Figure", path: Path, dpi: int = 100) -> None:
    """Write a figure whole or not at all, and the same bytes whatever version drew it."""
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})
