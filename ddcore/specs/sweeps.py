"""What a user posts to compare settings: variants of one distillation, each repeated with teachers of its own."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ddcore.presets import PRESETS
from ddcore.specs.fields import Spec
from ddcore.specs.jobs import DistillSpec, MeasureSpec, merge
from ddcore.sweep_presets import SWEEPS

MOST_CELLS = 2000  # evaluations of one sweep: its job is read as one page, with all its steps

VariantName = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]*$")]


class SweepSpec(Spec):
    """Distil with every variant of `base`, from several seeds each, measure all on the same terms, and rank them.

    Distillation i of every variant has the seed `base.seed` + i: from the teacher on all differs between seeds, and nothing differs between
    variants that they do not say. Steps that variants share are run once.
    """

    preset: str | None = Field(None, description="a named sweep; the other fields override it", examples=["ablation-digits"])
    base: DistillSpec = Field(DistillSpec(), description="fields that all variants begin from; may name a preset")
    variants: dict[VariantName, DistillSpec] = Field(
        min_length=1,
        max_length=50,
        description="name -> fields merged over `base`; a preset named here is merged over it too",
        examples=[{"mkdt": {}, "few-experts": {"experts": {"num": 8}}}],
    )
    seeds: int = Field(8, ge=1, le=200, description="distillations of each variant, every one with a teacher of its own")
    evaluate: MeasureSpec = Field(description="how each distillation is scored, as in an evaluation")

    @model_validator(mode="before")
    @classmethod
    def _merge_fields(cls, body: Any) -> Any:
        """Write every variant out in full, so that what is stored means the same for ever."""
        if not isinstance(body, dict):
            return body
        if body.get("preset") is not None:
            body = merge(SWEEPS[_known_sweep(cls.__name__, body["preset"])], body)
        variants = body.get("variants")
        if not isinstance(variants, dict):
            return body
        start = _whole(body.get("base", {}))
        whole = {name: merge(start, _expanded(given)) if isinstance(given, dict) else given for name, given in variants.items()}
        return body | {"variants": whole}

    @field_validator("variants")
    @classmethod
    def _seeds_are_paired(cls, variants: dict[str, DistillSpec]) -> dict[str, DistillSpec]:
        seeds = {variant.seed for variant in variants.values()}
        if len(seeds) > 1:
            raise ValueError("variants are compared seed by seed, so all begin from one: give base.seed instead of seeds of their own")
        return variants

    @model_validator(mode="after")
    def _of_a_size(self) -> "SweepSpec":
        own = max(1, len(self.evaluate.networks)) * self.evaluate.seeds
        cells = len(self.variants) * self.seeds * own
        if cells > MOST_CELLS:
            said = (
                f"{len(self.variants)} variants, {self.seeds} distillations of each and {own} evaluations of every one make {cells:,}"
                f" evaluations, and a sweep holds {MOST_CELLS:,}: give fewer seeds or evaluate.seeds, or split the variants"
            )
            raise ValueError(said)
        return self


def _whole(base: Any) -> dict[str, Any]:
    """Every field of a distillation; of one that is wrong, the defaults, so that its errors are not repeated in every variant."""
    try:
        spec = DistillSpec.model_validate(base)
    except ValidationError:
        spec = DistillSpec()
    return spec.model_dump(mode="json", exclude={"preset"})


def _known_sweep(title: str, name: Any) -> str:
    if isinstance(name, str) and name in SWEEPS:
        return name
    known = ", ".join(sorted(SWEEPS))
    error = PydanticCustomError("unknown_preset", "no sweep is called that; there are: {expected}", {"expected": known})
    raise ValidationError.from_exception_data(title, [InitErrorDetails(type=error, loc=("preset",), input=name)])


def _expanded(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with those of the preset that they name under them; a name that no preset has is left to be refused."""
    name = fields.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return fields
    return merge(PRESETS[name], {key: value for key, value in fields.items() if key != "preset"})
