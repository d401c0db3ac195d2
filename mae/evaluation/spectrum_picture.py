"""The eigenvalues of features, largest first: how evenly each encoder uses its directions."""

from pathlib import Path

from torch import Tensor

from mae.evaluation.arms import words
from mae.files import replacing_file

# Okabe and Ito's colours, which the colour-blind tell apart; baselines are dashed as well.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
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
    for index, (name, spectrum) in enumerate(spectra.items()):
        if not spectrum.sum() > 0:
            continue
        shares = (spectrum / spectrum.sum()).cpu().numpy()
        shares = shares[shares > _SMALLEST]
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle="-" if name == "pretrained" else "--",
            label=words(name),
        )
    axes.set(xscale="log", yscale="log", xlabel="direction", ylabel="share of the variance")
    axes.set_title("Variance of the mean feature by direction", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
