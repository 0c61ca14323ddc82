"""What may be asked for: methods and teachers with their papers and schemas, and presets."""

import re
from typing import Any, Literal, get_args

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ddcore import specs
from ddcore.presets import PRESETS
from ddcore.specs import DistillSpec, Spec, SweepSpec
from ddcore.sweep_presets import SWEEPS

router = APIRouter(tags=["catalogue"])

METHODS: tuple[type[Spec], ...] = (
    specs.MKDTSpec,
    specs.MKDTPlusSpec,
    specs.DinoTMSpec,
    specs.RandomSpec,
    specs.KMeansSpec,
    specs.HighLossSpec,
)
TEACHERS: tuple[type[Spec], ...] = (specs.DinoSpec, specs.BarlowTwinsSpec, specs.SimCLRSpec, specs.GivenTeacherSpec)
_ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


class Entry(BaseModel):
    """One thing that a spec may name."""

    name: str = Field(examples=["mkdt"])
    kind: Literal["method", "teacher"] = Field(description="where it goes in the spec: `method.name` or `teacher.ssl`")
    summary: str
    paper: str | None = Field(examples=["https://arxiv.org/abs/2410.02116"])
    fields: dict[str, Any] = Field(description="its JSON schema: every field with its range and default")


class Entries(BaseModel):
    data: list[Entry]


class Preset(BaseModel):
    """A named starting point."""

    name: str = Field(examples=["smoke"])
    spec: dict[str, Any] = Field(description="the whole spec that it stands for, defaults included")


class SweepPreset(BaseModel):
    """A named sweep."""

    name: str = Field(examples=["ablation-digits"])
    variants: list[str] = Field(examples=[["mkdt", "mkdt_plus", "dino_tm"]])
    spec: dict[str, Any] = Field(description="the whole sweep that it stands for, defaults included")


class Presets(BaseModel):
    data: list[Preset]
    sweeps: list[SweepPreset]


def _entry(model: type[Spec], kind: Literal["method", "teacher"], tag: str) -> Entry:
    schema = model.model_json_schema()
    summary = schema.pop("description")
    found = _ARXIV.search(summary)
    (name,) = get_args(model.model_fields[tag].annotation)
    return Entry(name=name, kind=kind, summary=summary, paper=f"https://arxiv.org/abs/{found[0]}" if found else None, fields=schema)


@router.get("/methods", summary="What each method and teacher does, its paper, and its fields")
def list_methods() -> Entries:
    return Entries(data=[_entry(m, "method", "name") for m in METHODS] + [_entry(t, "teacher", "ssl") for t in TEACHERS])


@router.get("/presets", summary="Named starting points, each as the whole spec it stands for")
def list_presets() -> Presets:
    presets = [Preset(name=name, spec=DistillSpec(preset=name).model_dump(mode="json")) for name in sorted(PRESETS)]
    return Presets(data=presets, sweeps=[_sweep_preset(name) for name in sorted(SWEEPS)])


def _sweep_preset(name: str) -> SweepPreset:
    spec = SweepSpec.model_validate({"preset": name})
    return SweepPreset(name=name, variants=list(spec.variants), spec=spec.model_dump(mode="json"))
