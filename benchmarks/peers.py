"""The usual ways to load images for training, as their own examples write them."""

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

_ENDLESS = 1 << 30


@dataclass(frozen=True)
class Recipe:
    """The reference MAE's pretraining transform, and how many processes apply it."""

    height: int
    width: int
    crop_area: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch: int
    workers: int

    def transform(self) -> transforms.Compose:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    (self.height, self.width),
                    scale=self.crop_area,
                    interpolation=transforms.InterpolationMode.BICUBIC,
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean=self.mean, std=self.std),
            ]
        )

    def image_folder(self, folder: Path) -> Iterator[int]:
        dataset = ImageFolder(str(folder), self.transform())
        yield from _counted(
            DataLoader(
                dataset,
                batch_size=self.batch,
                sampler=_Endless(len(dataset)),
                num_workers=self.workers,
                drop_last=True,
            )
        )

    def webdataset(self, tars: list[str]) -> Iterator[int]:
        import webdataset

        dataset = (
            webdataset.WebDataset(tars, resampled=True, shardshuffle=False)
            .shuffle(100)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(self.transform(), int)
        )
        yield from _counted(DataLoader(dataset, batch_size=self.batch, num_workers=self.workers))


class _Endless(Sampler[int]):
    """Every epoch another order, and no end: workers need not start anew."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self._count).tolist()

    def __len__(self) -> int:
        return _ENDLESS


def _counted(loader: "DataLoader[Any]") -> Iterator[int]:
    for images, _ in loader:
        yield len(images)


def write_tars(contents: list[bytes], folder: Path, tars: int = 4) -> list[str]:
    """Write images as WebDataset shards; return their paths."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:02d}.tar" for number in range(tars)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for position in range(number, len(contents), tars):
                for suffix, content in (("jpg", contents[position]), ("cls", b"0")):
                    entry = tarfile.TarInfo(f"{position:06d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return [str(path) for path in paths]


def decode_alone(contents: list[bytes], threads: int) -> Iterator[int]:
    """Decode in full, in threads, and throw away: what no loader of whole JPEGs can beat."""
    import simplejpeg

    def decode(part: list[bytes]) -> int:
        for content in part:
            simplejpeg.decode_jpeg(content)
        return len(part)

    parts = [contents[start : start + 16] for start in range(0, len(contents), 16)]
    with ThreadPoolExecutor(threads) as pool:
        ahead = []
        while True:
            for part in parts:
                ahead.append(pool.submit(decode, part))
                if len(ahead) > 2 * threads:
                    yield ahead.pop(0).result()


def scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return factors (C, 1, 1) with which pixels 0..255 x scale + shift are normalised."""
    deviation = torch.tensor(std)[:, None, None]
    return 1 / (255 * deviation), -torch.tensor(mean)[:, None, None] / deviation
