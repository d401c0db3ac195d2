"""params.yaml as frozen, typed objects: the only place where a knob is defined.

Unknown keys, wrong types and impossible values are refused together, in one error that names
each key. `runtime` holds what never changes the weights (workers, device, log interval); no stage
of dvc.yaml depends on it.
"""

from mae.params.base import Feature, Precision
from mae.params.model import (
    SIZES,
    DecoderParams,
    LossParams,
    MaskParams,
    ModelParams,
    TargetParams,
)
from mae.params.reading import parse_params, read_params
from mae.params.sections import (
    AugmentParams,
    DataParams,
    ExportParams,
    GateParams,
    ImagesParams,
    KnnParams,
    LabelBudget,
    LaunchParams,
    OptimParams,
    Params,
    RetrainParams,
    RuntimeParams,
    ScenesParams,
    SplitParams,
    ValidateParams,
)

__all__ = [
    "SIZES",
    "AugmentParams",
    "DataParams",
    "DecoderParams",
    "ExportParams",
    "Feature",
    "GateParams",
    "ImagesParams",
    "KnnParams",
    "LabelBudget",
    "LaunchParams",
    "LossParams",
    "MaskParams",
    "ModelParams",
    "OptimParams",
    "Params",
    "Precision",
    "RetrainParams",
    "RuntimeParams",
    "ScenesParams",
    "SplitParams",
    "TargetParams",
    "ValidateParams",
    "parse_params",
    "read_params",
]
