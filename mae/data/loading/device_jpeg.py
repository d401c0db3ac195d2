"""JPEGs decoded, cropped and resized on a GPU (nvJPEG, through torchvision).

For machines with too few cores for their GPUs. The views come back into the batch in memory, as
those of the threads do: a view is small beside the work that it took. The decoder rounds
otherwise than libjpeg-turbo, so this is no runtime setting: it is part of what a run learns from.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from mae.data.decoding.jpeg import Bytes


def jpeg_views(
    contents: Sequence[Bytes],
    crops: NDArray[np.int64],
    flips: NDArray[np.bool_],
    shape: tuple[int, int, int],
    device: torch.device,
) -> list[NDArray[np.uint8]]:
    """Return uint8 views of `shape` (C, height, width), C 1 or 3, of upright JPEGs.

    crops: int64 (N, 4), (top, left, height, width); flips: bool (N,), mirrored left to right.
    """
    channels, *frame = shape
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    decoded = decode_jpeg(encoded, mode=mode, device=device)
    views = []
    for planes, (top, left, height, width), flip in zip(decoded, crops, flips, strict=True):
        part = planes[None, :, top : top + height, left : left + width].float()
        view = interpolate(part, frame, mode="bicubic", antialias=True)[0]
        view = view.flip(-1) if flip else view
        views.append(view.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
    return views
