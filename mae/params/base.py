"""What every section of params.yaml is made of: the base class and the bounded numbers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
Range = Annotated[tuple[Rate, Rate], Field(strict=False)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Feature = Literal["cls", "mean"]
FrozenFeature = Literal["cls", "mean", "both"]  # both: one after the other


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
