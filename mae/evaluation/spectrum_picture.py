"""The eigenvalues of features, largest first: how evenly each encoder uses its directions."""

from pathlib import Path

from torch import Tensor

from mae.evaluation.arms import words
from mae.evaluation.drawing import colours_of, write_png

_SMALLEST = 1e-9  # share of the variance below which there is but rounding


def draw_spectra(spectra: dict[str, Tensor], path: Path) -> None:
    """Write a PNG of each encoder's eigenvalues (D,), falling, as shares of its variance.

    Both axes are logarithmic: a power law is a straight line. One without variance has no line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = colours_of(spectra)
    for name, spectrum in spectra.items():
        if not spectrum.sum() > 0:
            continue
        shares = (spectrum / spectrum.sum()).cpu().numpy()
        shares = shares[shares > _SMALLEST]
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=colours[name],
            linestyle="-" if name == "pretrained" else "--",
            label=words(name),
        )
    axes.set(xscale="log", yscale="log", xlabel="direction", ylabel="share of the variance")
    axes.set_title("Variance of the mean feature by direction", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    write_png(figure, path)
