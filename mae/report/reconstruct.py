"""Reconstructions of anybody's images by a saved autoencoder, and which it does worst on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mae.data.records import Rejected
from mae.errors import CheckpointError, DataError, ParamsError
from mae.export.images import InputImage, View, input_images
from mae.model.artifact import load_autoencoder
from mae.model.methods import Supervised
from mae.pixels import PixelStatistics
from mae.report.ranking import Scored, ids_of, stacked, worst_images, write_ranking
from mae.report.reconstruction import Reconstructing, draw_reconstructions
from mae.training.devices import resolve_device

_WORKERS = 2


@dataclass(frozen=True)
class Drawn:
    """How many images were drawn of how many seen, under which caption, and what was left out.

    worst: the images of the highest loss, the worst first, also in the CSV file `listing`.
    """

    images: int
    seen: int
    caption: str
    rejected: list[Rejected]
    worst: list[Scored]
    listing: Path | None


def reconstruct_images(
    checkpoint: Path,
    images: Path,
    out: Path,
    limit: int,
    worst: int | None = None,
    device: str = "cpu",
) -> Drawn:
    """Draw usable images of a folder, or one image, to the PNG `out`: at most `limit`.

    They are the first ones, or, with `worst`, those of the highest loss; then all images are
    looked at and the `worst` worst are listed in a CSV file beside `out`. The masks of an image
    are functions of its name. Raises CheckpointError for a folder without an autoencoder,
    DataError when no image can be used, ParamsError when `out` is no .png.
    """
    if out.suffix.lower() != ".png":
        raise ParamsError(f"--out {out} must end in .png")
    autoencoder, statistics = _load(checkpoint)
    autoencoder.to(resolve_device(device))
    architecture = autoencoder.encoder.architecture
    view = View(
        channels=architecture.channels,
        bit_depth=statistics.bit_depth,
        height=architecture.height,
        width=architecture.width,
        resize=autoencoder.params.resize,
    )
    usable = _Usable(input_images(images, view, _WORKERS))
    ranking: list[Scored] = []
    if worst is None:
        chosen, labels = list(islice(usable, limit)), None
    else:
        ranking = worst_images(usable, autoencoder, statistics, worst)
        chosen = [one.image for one in ranking[:limit]]
        labels = [f"loss {one.loss:.3g}: {one.image.key}" for one in ranking[:limit]]
    if not chosen:
        first = usable.rejected[0]
        raise DataError(f"no image in {images} can be used; {first.id}: {first.detail}")
    caption = draw_reconstructions(
        autoencoder, statistics, stacked(chosen), ids_of(chosen), out, labels
    )
    listing = None
    if worst is not None:
        listing = out.with_suffix(".csv")
        write_ranking(listing, ranking)
    return Drawn(len(chosen), usable.seen, caption, usable.rejected, ranking, listing)


def _load(checkpoint: Path) -> tuple[Reconstructing, PixelStatistics]:
    artifact = load_autoencoder(checkpoint)
    if isinstance(artifact.autoencoder, Supervised):
        raise CheckpointError(
            f"{checkpoint} learned labels (method supervised): it reconstructs nothing"
        )
    return artifact.autoencoder, artifact.statistics


class _Usable:
    """Passes usable images on and keeps what was left out."""

    def __init__(self, found: Iterable[InputImage | Rejected]) -> None:
        self._found = found
        self.rejected: list[Rejected] = []
        self.seen = 0

    def __iter__(self) -> Iterator[InputImage]:
        for one in self._found:
            if isinstance(one, Rejected):
                self.rejected.append(one)
            else:
                self.seen += 1
                yield one
