"""The answers of a service, as its OpenAPI document describes them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from mae.export.serving.deployed import Deployed


class ModelInUse(BaseModel):
    """Which model made an answer: vectors of different models must not be compared."""

    version: str = Field(description="As its file or the registry names it.")
    sha256: str = Field(description="Of the file.")

    @classmethod
    def of(cls, model: Deployed) -> "ModelInUse":
        return cls(version=model.version, sha256=model.session.sha256)


_NAME = Field(description="Of the form's file; null for a body that is the image.")


class Vector(BaseModel):
    name: str | None = _NAME
    embedding: list[float]


class Embeddings(BaseModel):
    """A vector for each image, in the order in which they were sent."""

    model: ModelInUse
    feature: Literal["cls", "mean"]
    dim: int
    images: list[Vector]


class Class(BaseModel):
    label: str
    probability: float


class Classified(BaseModel):
    name: str | None = _NAME
    classes: list[Class] = Field(description="The most probable first.")


class Classifications(BaseModel):
    """The likeliest classes of each image, in the order in which they were sent."""

    model: ModelInUse
    images: list[Classified]


class Neighbour(BaseModel):
    key: str = Field(description="As the index names the image.")
    similarity: float = Field(description="Cosine, 1 for the same direction.")


class Neighbours(BaseModel):
    name: str | None = _NAME
    matches: list[Neighbour] = Field(description="The most similar first.")


class Searched(BaseModel):
    """The nearest images of the index for each image, in the order in which they were sent."""

    model: ModelInUse
    images: list[Neighbours]


class Health(BaseModel):
    status: Literal["alive"] = "alive"


class ModelState(BaseModel):
    asked_for: str = Field(description="The path or name the service was started with.")
    version: str
    sha256: str
    since: datetime
    provider: str = Field(description="What onnxruntime runs it on.")
    made_by: str = Field(description="The version of Maestro that exported it.")


class IndexState(BaseModel):
    usable: bool
    images: int | None
    feature: str | None


class Readiness(BaseModel):
    """What is served. `problems`: why it is not the newest there is, by model or index."""

    status: Literal["ready", "stopping"]
    models: dict[str, ModelState]
    index: IndexState | None
    problems: dict[str, str]
