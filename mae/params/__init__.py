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
from mae.params.export import (
    BenchmarkParams,
    ExportParams,
    OnnxPrecision,
    ParityLimits,
    ParityParams,
)
from mae.params.model import (
    SIZES,
    DecoderParams,
    LossParams,
    MaskParams,
    ModelParams,
    TargetParams,
)
from mae.params.orchestration import (
    ComparisonParams,
    FlowsParams,
    GateParams,
    NotifyParams,
    PublishParams,
    RetrainParams,
    StagePolicy,
)
from mae.params.reading import parse_params, read_params
from mae.params.sections import (
    DataParams,
    ImagesParams,
    Params,
    ScenesParams,
    SplitParams,
)
from mae.params.training import (
    AugmentParams,
    DivergenceParams,
    ExecutorParams,
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
    "BenchmarkParams",
    "ComparisonParams",
    "Corruption",
    "DataParams",
    "DecoderParams",
    "DivergenceParams",
    "EvaluateParams",
    "ExecutorParams",
    "ExportParams",
    "Feature",
    "FewShotParams",
    "FinetuneAugmentParams",
    "FinetuneParams",
    "FlowsParams",
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
    "NotifyParams",
    "ObserveParams",
    "OnnxPrecision",
    "OptimParams",
    "Params",
    "ParityLimits",
    "ParityParams",
    "PartialParams",
    "Precision",
    "PretrainParams",
    "PublishParams",
    "QualityParams",
    "RetrainParams",
    "RetrievalParams",
    "RobustnessParams",
    "RuntimeParams",
    "ScenesParams",
    "SplitParams",
    "StagePolicy",
    "TargetParams",
    "TestTimeParams",
    "ValidateParams",
    "parse_params",
    "read_params",
]
