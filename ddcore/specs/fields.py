"""What all specs are made of: the base of the models, and kinds of numbers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first of the two must not be larger than the second")
    return pair


def distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"each is named at most once, but {', '.join(twice)} more often")
    return names


Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Scale = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]  # of the area of an image: from, to
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Augmentation = Literal["flip", "shift", "scale", "brightness", "saturation", "contrast", "cutout"]


class Spec(BaseModel):
    """Base of all specs: frozen, and no field that is not described here."""

    model_config = ConfigDict(extra="forbid", frozen=True)
