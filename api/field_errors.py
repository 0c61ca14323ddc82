"""From pydantic's errors to the fields a person typed: clean paths, what is allowed, and near misses of misspelt names."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api.bodies import BODIES, SPELT
from ddcore.errors import Problem

# Pydantic speaks of Python; who posts JSON should read of JSON.
_WORDS = (
    ("Value error, ", ""),
    ("a valid dictionary or object to extract fields from", "a JSON object"),
    ("a valid dictionary", "a JSON object"),
    ("a valid tuple", "a list"),
    ("a valid list", "a list"),
    ("Tuple should", "must"),
    ("List should", "must"),
    ("String should", "must"),
    ("Input should", "must"),
    (" after validation", ""),
    ("unable to parse string as an integer", "which this text is not"),
    ("unable to parse string as a number", "which this text is not"),
)

Loc = tuple[str | int, ...]


def field_problems(errors: Sequence[Any], path: str) -> list[Problem]:
    """One `Problem` an error. path: of the request; it tells which model the body had to fit."""
    deeper = [tuple(error["loc"]) for error in errors]
    # A list that came up short because one of its items is wrong says nothing of its own.
    echoes = [
        e
        for e in errors
        if e["type"] == "too_short" and any(loc != tuple(e["loc"]) and loc[: len(e["loc"])] == tuple(e["loc"]) for loc in deeper)
    ]
    return [_problem(error, BODIES.get(path)) for error in errors if error not in echoes]


def _problem(error: dict[str, Any], body: type[BaseModel] | None) -> Problem:
    where, *rest = error["loc"] or ("body",)
    if where != "body":
        return Problem(tuple(rest) or (where,), _message(error), _given(error), _allowed(error, None))
    loc, models, field = _walk(tuple(rest), body)
    kind, context = error["type"], error.get("ctx", {})
    if not loc and kind in ("missing", "model_attributes_type", "model_type"):
        return Problem((), "the body must be a JSON object, if only {}", error.get("input"), "a JSON object")
    if not loc:  # of the body as a whole; to repeat it would not help
        return Problem((), _message(error))
    if kind == "extra_forbidden":
        return _unknown_field(loc, error["input"], models)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        kinds = sorted(name for model in models for name in [_tag(model)] if name)
        if kind == "union_tag_not_found":
            return Problem((*loc, tag), "say which kind it is", None, kinds)
        near = near_miss(context["tag"], kinds)
        return Problem((*loc, tag), f"there is no {context['tag']!r}{near}", context["tag"], kinds)
    return Problem(loc, _message(error), _given(error), _allowed(error, field))


def _unknown_field(loc: Loc, given: Any, models: list[type[BaseModel]]) -> Problem:
    names = sorted({name for model in models for name in model.model_fields})
    return Problem(loc, f"there is no such field{near_miss(str(loc[-1]), names)}", given, names)


def near_miss(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _walk(loc: Loc, model: type[BaseModel] | None) -> tuple[Loc, list[type[BaseModel]], FieldInfo | None]:
    """Follow pydantic's `loc` through the models, dropping the union tags that it adds.

    Returns the path that the user typed, the models that could stand at its last table, and the field at its end.
    """
    path: list[str | int] = []
    models = [model] if model else []
    field: FieldInfo | None = None
    named = False  # whether this part is a name that the user gave, in a table of things by name
    for position, part in enumerate(loc):
        if part == "[key]":  # pydantic's word for an error in such a name
            continue
        if named:
            path.append(part)
            named = False
            continue
        tagged = [one for one in models if _tag(one) == part]
        if tagged and len(models) > 1:
            models, field = tagged, None
            continue
        path.append(part)
        if isinstance(part, int):
            continue
        fields = [one.model_fields[part] for one in models if part in one.model_fields]
        field = fields[0] if fields else None
        inner = list(_models_in(field.annotation)) if field else []
        if inner or position < len(loc) - 1:
            models = inner
        named = field is not None and get_origin(field.annotation) is dict
    return tuple(path), models, field


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _choices(annotation: Any) -> Iterator[Any]:
    """The values of a Literal, wherever it stands in the annotation."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for part in get_args(annotation):
        yield from _choices(part)


def _tag(model: type[BaseModel]) -> str | None:
    """What names this model among its alternatives: the value of its `ssl` or `name`."""
    for name in ("ssl", "name"):
        if name in model.model_fields and isinstance(default := model.model_fields[name].default, str):
            return default
    return None


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "missing":
        return "is needed"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] in SPELT:
        return "has characters that it may not have"
    text = str(error["msg"])
    for theirs, ours in _WORDS:
        text = text.replace(theirs, ours)
    return text[:1].lower() + text[1:]


def _given(error: dict[str, Any]) -> Any:
    return None if error["type"] == "missing" else error.get("input")


def _allowed(error: dict[str, Any], field: FieldInfo | None) -> Any:
    """The permitted values: the field's whole range where it has one, otherwise what pydantic says of this one error."""
    context = error.get("ctx", {})
    if choices := list(_choices(field.annotation)) if field else []:
        return choices
    if "expected" in context:
        return context["expected"]
    bounds = dict(context)
    for mark in field.metadata if field else ():
        for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt")):
            if isinstance(mark, kind):
                bounds[name] = getattr(mark, name)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None or high is not None:
        parts = [f"{'at least' if 'ge' in bounds else 'more than'} {low}"] if low is not None else []
        parts += [f"{'at most' if 'le' in bounds else 'less than'} {high}"] if high is not None else []
        return f"{low} to {high}" if "ge" in bounds and "le" in bounds else " and ".join(parts)
    lengths = [f"at {edge} {context[name]}" for name, edge in (("min_length", "least"), ("max_length", "most")) if name in context]
    return " and ".join(lengths) or SPELT.get(context.get("pattern", ""), context.get("pattern"))
