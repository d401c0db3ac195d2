"""Mask R-CNN on a plain encoder: torchvision's detector behind a simple feature pyramid."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from mae.hashing import stream
from mae.model.encoder import Encoder
from mae.model.pyramid import FeaturePyramid, pyramid_strides

_ASPECTS = (0.5, 1.0, 2.0)  # height / width of the anchors, as in Faster R-CNN
_CHANNELS = 64  # of the pyramid and of the mask head; published ones have 256
_BOX_WIDTH = 256
_BOX_CELLS, _MASK_CELLS = 7, 14
_BOXES_LEARNED = 64  # proposals of an image that a step learns from, a quarter of them objects

# An object is pooled from the level on which it spans 14 to 28 cells, the ratio of the FPN
# paper (224 pixels at stride 16); smaller ones from the finest, larger ones from the coarsest.
_CELLS_PER_OBJECT = 14


class PyramidBackbone(nn.Module):
    """Normalised images (N, C, H, W) -> pyramid maps named "0", "1", ..., fine to coarse."""

    def __init__(self, encoder: Encoder, pyramid: FeaturePyramid) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = pyramid
        self.out_channels = pyramid.out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        patches = self.encoder(images).patches
        assert patches is not None
        # Anchors take the type of the maps, and bf16 cannot name a pixel beyond the 256th.
        maps = (level.float() for level in self.pyramid(patches))
        return OrderedDict((str(index), level) for index, level in enumerate(maps))


class _OnlyPad(GeneralizedRCNNTransform):
    """Pads a batch to whole cells of the coarsest level. Images come resized and normalised, and
    detections leave in their pixels, with masks of 28 x 28 for each box."""

    def __init__(self, multiple: int) -> None:
        super().__init__(0, 0, image_mean=[], image_std=[], size_divisible=multiple)

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


class CentredAnchors(AnchorGenerator):
    """Anchors around the middle of each cell, at the exact stride of its level.

    torchvision centres them on the cell's corner, rounds their sides to pixels and takes the
    stride from the shapes of image and map: small objects and odd grids lose by each.
    """

    def __init__(self, sides: tuple[float, ...], strides: tuple[float, ...]) -> None:
        super().__init__(tuple((side,) for side in sides), (_ASPECTS,) * len(sides))
        self.strides = strides

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        side = torch.as_tensor(scales, dtype=dtype, device=device)[None, :]
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        width, height = (side / root).flatten(), (side * root).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        anchors = torch.cat(
            [
                (_cell_centres(level, stride)[:, None, :] + cell[None]).flatten(0, 1)
                for level, stride, cell in zip(
                    feature_maps, self.strides, self.cell_anchors, strict=True
                )
            ]
        )
        return [anchors] * len(image_list.image_sizes)


def _cell_centres(level: Tensor, stride: float) -> Tensor:
    """Return (x, y, x, y) of every cell, row by row: (cells, 4)."""
    row, column = torch.meshgrid(
        *((torch.arange(n, device=level.device) + 0.5) * stride for n in level.shape[-2:]),
        indexing="ij",
    )
    return torch.stack([column, row, column, row], dim=-1).reshape(-1, 4)


def build_detector(
    encoder: Encoder, categories: int, anchor_sides: tuple[float, ...], seed: int
) -> MaskRCNN:
    """Return Mask R-CNN whose new weights are a function of the seed; `encoder` is used as it is.

    Takes a list of normalised images (C, H, W) of one shape. anchor_sides: one for each level.
    """
    patch = encoder.architecture.patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "detector init") >> 1)
        backbone = PyramidBackbone(encoder, FeaturePyramid(encoder.dim, patch, _CHANNELS))
        detector = MaskRCNN(
            backbone,
            rpn_anchor_generator=CentredAnchors(anchor_sides, backbone.pyramid.strides),
            rpn_pre_nms_top_n_train=400,
            rpn_pre_nms_top_n_test=1000,
            rpn_post_nms_top_n_train=200,
            rpn_post_nms_top_n_test=500,
            box_roi_pool=_pooler(patch, _BOX_CELLS),
            box_head=TwoMLPHead(_CHANNELS * _BOX_CELLS**2, _BOX_WIDTH),
            box_predictor=FastRCNNPredictor(_BOX_WIDTH, categories + 1),
            box_batch_size_per_image=_BOXES_LEARNED,
            mask_roi_pool=_pooler(patch, _MASK_CELLS),
            mask_head=MaskRCNNHeads(_CHANNELS, (_CHANNELS, _CHANNELS), dilation=1),
            mask_predictor=MaskRCNNPredictor(_CHANNELS, _CHANNELS, categories + 1),
        )
    # Whole patches, and whole cells of the coarsest level, which span two patches.
    detector.transform = _OnlyPad(math.lcm(*patch, 2 * min(patch)))
    return detector


def _pooler(patch: tuple[int, int], cells: int) -> MultiScaleRoIAlign:
    strides = pyramid_strides(patch)
    names = [str(level) for level in range(len(strides))]
    pooler = MultiScaleRoIAlign(names, cells, sampling_ratio=2)
    # Set here, since torchvision would guess both, and takes every stride for a power of two.
    pooler.scales = [1 / stride for stride in strides]
    pooler.map_levels = LevelMapper(
        0, len(strides) - 1, canonical_scale=_CELLS_PER_OBJECT * strides[0], canonical_level=0
    )
    return pooler


def anchor_sides(boxes: Tensor, levels: int) -> tuple[float, ...]:
    """Return one anchor side for each pyramid level, from boxes (M, 4) as x0, y0, x1, y1.

    The sides of equal area cut the boxes into as many equal shares as there are levels, and
    each level takes the middle of its share.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().double()
    shares = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    return tuple(torch.quantile(side, shares).tolist())
