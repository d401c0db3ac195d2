"""params.yaml as frozen, typed objects: the only place where a knob is defined.

Unknown keys, wrong types and impossible values are refused together, in one error that names
each key. `runtime` holds what never changes the weights (workers, device, log interval); no stage
of dvc.yaml depends on it.
"""

from mae.params.base import Feature, FrozenFeature, Precision
from mae.params.evaluation import (
    Corruption,
    EvaluateParams,
    FewShotParams,
    FinetuneAugmentParams,
    FinetuneParams,
    KnnParams,
    LabelBudget,
    LabelBudgetParams,
    LinearParams,
    LinearProbeParams,
    LoraParams,
    PartialParams,
    QualityParams,
    RetrievalParams,
    RobustnessParams,
    TestTimeParams,
)
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
    DataParams,
    ExportParams,
    GateParams,
    ImagesParams,
    Params,
    RetrainParams,
    ScenesParams,
    SplitParams,
)
from mae.params.training import (
    AugmentParams,
    DivergenceParams,
    LaunchParams,
    ObserveParams,
    OptimParams,
    PretrainParams,
    RuntimeParams,
)
from mae.params.validation import ValidateParams

__all__ = [
    "SIZES",
    "AugmentParams",
    "Corruption",
    "DataParams",
    "DecoderParams",
    "DivergenceParams",
    "EvaluateParams",
    "ExportParams",
    "Feature",
    "FewShotParams",
    "FinetuneAugmentParams",
    "FinetuneParams",
    "FrozenFeature",
    "GateParams",
    "ImagesParams",
    "KnnParams",
    "LabelBudget",
    "LabelBudgetParams",
    "LaunchParams",
    "LinearParams",
    "LinearProbeParams",
    "LoraParams",
    "LossParams",
    "MaskParams",
    "ModelParams",
    "ObserveParams",
    "OptimParams",
    "Params",
    "PartialParams",
    "Precision",
    "PretrainParams",
    "QualityParams",
    "RetrainParams",
    "RetrievalParams",
    "RobustnessParams",
    "RuntimeParams",
    "ScenesParams",
    "SplitParams",
    "TargetParams",
    "TestTimeParams",
    "ValidateParams",
    "parse_params",
    "read_params",
]
