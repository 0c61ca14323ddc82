"""Specs: presets and what overrides them, and refusals that name field, given and allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ddcore.checks import DatasetFacts
from ddcore.data.builtins import BUILTINS, facts
from ddcore.errors import SpecError
from ddcore.plan import plan_distill
from ddcore.presets import PRESETS
from ddcore.specs import DinoSpec, DistillSpec, EvaluateSpec, GivenTeacherSpec, ObserveSpec, StudentSpec, merge

UPLOAD = DatasetFacts("upload", {"archive": "0" * 64}, 50_000, (3, 32, 32), (5000,) * 10)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_spec_that_can_be_planned_and_survives_json(name):
    spec = DistillSpec(preset=name)
    assert DistillSpec.model_validate_json(spec.model_dump_json()) == spec
    large = DatasetFacts("upload", {"archive": "0" * 64}, 100_000, (3, 64, 64), None)
    plan = plan_distill(spec, large if name.endswith("-64") else facts(spec.dataset) if spec.dataset in BUILTINS else UPLOAD)
    assert [step.kind for step in plan][-3:] == ["distill", "export", "figures"]


@pytest.mark.parametrize("name", ["dino-resnet18-64", "dino-vit-64"])
def test_a_recipe_for_larger_images_says_so_of_smaller_ones(name):
    with pytest.raises(SpecError, match=r"local_crop_size: .* no larger than the images, of 8x8 pixels"):
        plan_distill(DistillSpec(preset=name), facts("digits-train"))


def test_fields_override_a_preset_at_any_depth_and_leave_the_rest():
    plain = DistillSpec(preset="smoke")
    spec = DistillSpec(preset="smoke", seed=7, teacher={"epochs": 5, "backbone": {"depth": 1}}, experts={"ema": 0.9})
    assert (spec.seed, spec.teacher.epochs, spec.teacher.backbone.depth, spec.experts.ema) == (7, 5, 1, 0.9)
    assert spec.teacher.ssl == "dino"
    assert spec.teacher.backbone.width == plain.teacher.backbone.width == 16
    assert spec.experts.num == plain.experts.num
    assert spec.method == plain.method


def test_another_kind_replaces_the_presets_table_whole():
    spec = DistillSpec(preset="smoke", teacher={"ssl": "simclr"}, method={"name": "random"})
    assert (spec.teacher.ssl, spec.teacher.epochs, spec.teacher.backbone.name) == ("simclr", 200, "resnet18")
    assert spec.method.model_dump() == {"name": "random"}


def test_a_student_has_the_sizes_of_its_name_unless_told_otherwise():
    assert StudentSpec().model_dump() == {"name": "convnet", "depth": 3, "width": 128}
    assert StudentSpec(name="resnet10").model_dump() == {"name": "resnet10", "depth": 4, "width": 64}
    assert StudentSpec(name="vit_tiny", depth=2).model_dump() == {"name": "vit_tiny", "depth": 2, "width": 192}
    assert DistillSpec(preset="demo", student={"name": "vgg11"}).student == StudentSpec(name="vgg11", depth=5, width=64)
    assert StudentSpec(**StudentSpec(name="vgg11", width=8).model_dump(mode="json")) == StudentSpec(name="vgg11", width=8)


def test_merge_changes_neither_side_and_lets_values_replace_tables():
    base, over = {"a": {"name": "x", "n": 1}, "b": {"c": 2}}, {"a": {"n": 2}, "b": None, "d": [1]}
    assert merge(base, over) == {"a": {"name": "x", "n": 2}, "b": None, "d": [1]}
    assert base == {"a": {"name": "x", "n": 1}, "b": {"c": 2}}
    assert over == {"a": {"n": 2}, "b": None, "d": [1]}


TABLES = st.recursive(st.integers() | st.none(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from("abc"), TABLES), st.dictionaries(st.sampled_from("abc"), TABLES))
def test_merging_is_idempotent_and_the_later_table_wins(base, over):
    merged = merge(base, over)
    assert merge(base, {}) == base
    assert merge(merged, over) == merged
    assert set(merged) == set(base) | set(over)
    for key, value in over.items():
        assert merged[key] == value or isinstance(value, dict)


@pytest.mark.parametrize(
    ("body", "where", "words"),
    [
        ({"preset": "no such"}, ("preset",), "smoke"),
        ({"preset": 3}, ("preset",), "smoke"),
        ({"num_images": 0}, ("num_images",), "greater than or equal to 1"),
        ({"num_images": "many"}, ("num_images",), "valid integer"),
        ({"sead": 1}, ("sead",), "not permitted"),
        ({"method": {"name": "magic"}}, ("method",), "'mkdt', 'mkdt_plus', 'dino_tm', 'random', 'k_means', 'high_loss'"),
        ({"method": {"name": "mkdt", "iterations": 0}}, ("method", "mkdt", "iterations"), "greater than or equal to 1"),
        ({"method": {"name": "mkdt", "inner_steps": 0}}, ("method", "mkdt", "inner_steps"), "greater than or equal to 1"),
        ({"method": {"name": "mkdt", "initial_rate": 0}}, ("method", "mkdt", "initial_rate"), "greater than 0"),
        ({"teacher": {"ssl": "moco"}}, ("teacher",), "'dino', 'barlow_twins', 'simclr', 'given'"),
        ({"teacher": {"ssl": "given"}}, ("teacher", "given"), "a checkpoint is needed"),
        ({"teacher": {"ssl": "dino", "lr": float("inf")}}, ("teacher", "dino", "lr"), "finite"),
        ({"experts": {"lr": float("nan")}}, ("experts", "lr"), "finite"),
        ({"experts": {"ema": 1.0}}, ("experts", "ema"), "less than 1"),
        ({"student": {"depth": 0}}, ("student", "depth"), "greater than or equal to 1"),
        ({"student": {"name": "alexnet"}}, ("student", "name"), "'resnet10', 'resnet18', 'vgg11' or 'vit_tiny'"),
        ({"student": {"depth": 7}}, ("student", "depth"), "convnet has 1 to 6 blocks"),
        ({"student": {"name": "resnet18", "depth": 3}}, ("student", "depth"), "resnet18 has 4 stages, no more and no fewer"),
        ({"student": {"name": "vit_tiny", "width": 64}}, ("student", "width"), "a multiple of its 3 heads"),
        ({"method": {"name": "mkdt", "rates": "two"}}, ("method", "mkdt", "rates"), "'one' or 'per_layer'"),
        ({"method": {"name": "mkdt", "augment": ["spin"]}}, ("method", "mkdt", "augment", 0), "'flip', 'shift', 'scale'"),
        ({"method": {"name": "mkdt", "augment": ["flip", "scale", "flip"]}}, ("method", "mkdt", "augment"), "but flip more often"),
        ({"seed": -1}, ("seed",), "greater than or equal to 0"),
    ],
)
def test_a_refusal_names_the_field_what_was_given_and_what_is_allowed(body, where, words):
    with pytest.raises(ValidationError) as caught:
        DistillSpec.model_validate(body)
    (error,) = caught.value.errors()
    assert error["loc"] == where
    assert words in error["msg"]
    assert "input" in error


@pytest.mark.parametrize(
    ("field", "value"),
    [("label_fractions", [0.0]), ("label_fractions", [1.5]), ("seeds", 0), ("downstream", []), ("baselines", ["best"]), ("knn", 0)],
)
def test_an_evaluation_that_makes_no_sense_is_refused(field, value):
    body = {"synthetic_set": "s", "downstream": [{"train": "a", "test": "b"}]}
    assert EvaluateSpec(**body).seeds == 5
    with pytest.raises(ValidationError) as caught:
        EvaluateSpec(**{**body, field: value})
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_snapshots_are_counted_by_number_or_by_epochs_but_not_without_end():
    assert DinoSpec(snapshots=7).num_snapshots == 7
    assert DinoSpec(epochs=200, snapshot_every=0.25, snapshots=7).num_snapshots == 801
    assert DinoSpec(epochs=3, snapshot_every=2).num_snapshots == 3
    with pytest.raises(ValidationError, match=r"8,001 snapshots are more .* give a snapshot_every of at least 0\.801 for 800 epochs"):
        DinoSpec(epochs=800, snapshot_every=0.1)
    assert DinoSpec(epochs=800, snapshot_every=0.801).num_snapshots == 1000


def test_specs_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        DistillSpec().seed = 3


@pytest.mark.parametrize(
    ("body", "where", "words"),
    [
        ({"teacher": {"ssl": "given", "source": "timm"}}, ("teacher",), "train one with ssl dino, barlow_twins or simclr"),
        ({"teacher": {"ssl": "given"}}, ("teacher",), "a given teacher has no recorded run"),
        ({"runs": 0}, ("runs",), "greater than or equal to 1"),
        ({"epochs": 1}, ("epochs",), "greater than or equal to 2"),
        ({"num_images": 3}, ("num_images",), "not permitted"),
    ],
)
def test_an_observation_that_makes_no_sense_is_refused(body, where, words):
    with pytest.raises(ValidationError) as caught:
        ObserveSpec.model_validate(body)
    (error,) = caught.value.errors()
    assert (error["loc"], words in error["msg"]) == (where, True), error


def test_no_observation_of_a_given_teacher_can_be_made_in_python_either():
    given_teacher = GivenTeacherSpec(source="timm")
    with pytest.raises(ValidationError, match="no recorded run"):
        ObserveSpec(teacher=given_teacher)
    assert ObserveSpec(teacher=DinoSpec(epochs=3)).teacher.epochs == 3


SHARED = {"init": "random", "iterations": 77, "inner_steps": 6, "lr_images": 3.5, "rates": "per_layer", "augment": ["shift"]}


@pytest.mark.parametrize("other", ["mkdt", "mkdt_plus", "dino_tm"])
@pytest.mark.parametrize("one", ["mkdt", "mkdt_plus", "dino_tm"])
def test_one_matching_method_in_place_of_another_keeps_the_fields_that_both_have(one, other):
    own = {"mkdt_plus": {"gap": 0.5, "lag": False}, "dino_tm": {"gap": 0.5, "stages": 9}}.get(one, {})
    shared = own if one == other else {} if "mkdt" in (one, other) else {key: value for key, value in own.items() if key != "stages"}
    merged = merge({"method": {"name": one} | SHARED | own}, {"method": {"name": other, "inner_steps": 8}})["method"]
    assert {key: merged[key] for key in SHARED} == SHARED | {"inner_steps": 8}
    assert {key: merged[key] for key in own if key in merged} == shared
    spec = DistillSpec(method=merged).method
    assert (spec.name, spec.iterations, spec.inner_steps) == (other, 77, 8)


def test_a_presets_matching_is_kept_by_another_matching_method_and_not_by_a_selection():
    plain = DistillSpec(preset="smoke").method
    plus = DistillSpec(preset="smoke", method={"name": "dino_tm", "stages": 3}).method
    assert (plus.name, plus.stages) == ("dino_tm", 3)
    assert {key: getattr(plus, key) for key in plain.model_dump() if key != "name"} == plain.model_dump(exclude={"name"})
    assert DistillSpec(preset="smoke", method={"name": "k_means"}).method.model_dump() == {"name": "k_means"}
    assert merge({"method": {"name": "k_means"}}, {"method": {"name": "mkdt"}}) == {"method": {"name": "mkdt"}}


@pytest.mark.parametrize("name", [["mkdt"], {"a": 1}, 3, None])
def test_a_name_that_is_no_name_is_refused_over_a_preset_as_it_is_alone(name):
    for preset in ({}, {"preset": "smoke"}):
        with pytest.raises(ValidationError) as caught:
            DistillSpec.model_validate(preset | {"method": {"name": name}})
        assert caught.value.errors()[0]["loc"][0] == "method"


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"name": "mkdt", "gap": 0.1}, "gap", "not permitted"),
        ({"name": "mkdt_plus", "stages": 3}, "stages", "not permitted"),
        ({"name": "mkdt_plus", "displacement": -0.1}, "displacement", "greater than or equal to 0"),
        ({"name": "mkdt_plus", "functional": float("inf")}, "functional", "finite"),
        ({"name": "mkdt_plus", "functional_goal": "labels"}, "functional_goal", "'expert' or 'teacher'"),
        ({"name": "mkdt_plus", "growing": 1.5}, "growing", "less than or equal to 1"),
        ({"name": "mkdt_plus", "threshold": 0}, "threshold", "greater than 0"),
        ({"name": "dino_tm", "path": "centre"}, "path", "'staged', 'final', 'teacher' or 'student'"),
        ({"name": "dino_tm", "stages": 1}, "stages", "greater than or equal to 2"),
    ],
)
def test_parts_of_a_matching_method_that_make_no_sense_are_refused(fields, where, words):
    with pytest.raises(ValidationError) as caught:
        DistillSpec(method=fields)
    (error,) = caught.value.errors()
    assert (error["loc"], words in error["msg"]) == (("method", fields["name"], where), True), error


@given(st.sampled_from(["staged", "final", "teacher", "student"]), st.floats(0, 10), st.booleans())
def test_a_matching_method_survives_json(path, gap, lag):
    spec = DistillSpec(method={"name": "dino_tm", "path": path, "gap": gap, "lag": lag, "threshold": 1.5})
    assert DistillSpec.model_validate_json(spec.model_dump_json()) == spec
