"""What may be posted as JSON: a spec of the engine, and beside it what the job is filed under and whose turn it takes."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ddcore.specs import DistillSpec, EvaluateSpec, ObserveSpec, SweepSpec

_LABEL, _OWNER = r"^[A-Za-z0-9][A-Za-z0-9._/=:-]*$", r"^([A-Za-z0-9][A-Za-z0-9._@+-]*)?$"
SPELT = {  # what these patterns take, in words
    _LABEL: "letters, digits and . _ / = : -, the first a letter or a digit",
    _OWNER: "letters, digits and . _ @ + -, the first a letter or a digit",
}
Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=_LABEL)]
Labels = Annotated[tuple[Label, ...], Field(max_length=32, description="words to find the job by: `GET /jobs?label=`")]
Priority = Annotated[int, Field(strict=True, ge=-100, le=100, description="among waiting steps, larger runs first")]
Owner = Annotated[
    str,
    StringConstraints(max_length=63, pattern=_OWNER),
    Field(description="who posts it: among steps of equal priority, owners take turns; a name, not an identity, since there is no login"),
]
BESIDE = {"labels", "priority", "owner"}  # fields of a body that are not of its spec


DEEPEST = 20  # tables and lists within each other; a spec has five


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > DEEPEST:
        raise ValueError(f"tables and lists may be nested {DEEPEST} deep")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key, depth)
            yield from _texts(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, depth + 1)


def _storable(body: Any) -> Any:
    """Refuse what JSON can spell and nobody can use: NUL characters, halves of surrogate pairs, endless nesting."""
    for text in _texts(body):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"text must hold no NUL characters or lone surrogates, and {ascii(text)[:100]} does")
    return body


class DistillBody(DistillSpec):
    """A distillation: a preset, a dataset, and whatever should differ from the preset."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"preset": "smoke"}]})
    labels: Labels = ()
    priority: Priority = 0
    owner: Owner = ""

    _text = model_validator(mode="before")(_storable)


class EvaluateBody(EvaluateSpec):
    """A comparison of a synthetic set with baselines of the same size and targets, on labelled tasks."""

    labels: Labels = ()
    priority: Priority = 0
    owner: Owner = ""

    _text = model_validator(mode="before")(_storable)


class ObserveBody(ObserveSpec):
    """A look at how networks move while they learn: which are trained, on what, and how often."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"dataset": "digits-train", "teacher": {"ssl": "dino"}}]})
    labels: Labels = ()
    priority: Priority = 0
    owner: Owner = ""

    _text = model_validator(mode="before")(_storable)


class SweepBody(SweepSpec):
    """Variants of one distillation, each repeated with teachers of its own, and ranked."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"preset": "ablation-digits"}]})
    labels: Labels = ()
    priority: Priority = 0
    owner: Owner = ""

    _text = model_validator(mode="before")(_storable)


# The model of each address that takes JSON; errors are explained with its fields.
BODIES: dict[str, type[BaseModel]] = {"/distill": DistillBody, "/evaluate": EvaluateBody, "/observe": ObserveBody, "/sweeps": SweepBody}


class ChangeBody(BaseModel):
    """What is to change of a job; what is left out, or null, stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": 10}]})
    labels: Labels | None = None
    priority: Priority | None = None
    pinned: bool | None = Field(None, description="a pinned job keeps the files of all its steps, however long nobody uses them")


class CloneBody(BaseModel):
    """What is to differ from the job that is cloned; what is left out, or null, is as it was there."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": 10, "owner": "ada"}]})
    labels: Labels | None = None
    priority: Priority | None = None
    owner: Owner | None = None
