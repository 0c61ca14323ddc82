"""A sweep's graph: each step once, the very steps that its distillations and evaluations have alone, and errors where they belong."""

from collections import Counter

import pytest
from pydantic import ValidationError

from ddcore.checks import DatasetFacts
from ddcore.data.builtins import facts
from ddcore.errors import SpecError
from ddcore.plan import Plan, plan_distill, plan_evaluate
from ddcore.specs import DistillSpec, EvaluateSpec, SweepSpec
from ddcore.sweep_plan import datasets_of, distillation, measure, plan_sweep
from ddcore.sweep_presets import SWEEPS

DIGITS = {name: facts(name) for name in ("digits-train", "digits-test")}
TASK = {"train": "digits-train", "test": "digits-test"}
MEASURE = {"downstream": [TASK], "seeds": 2, "label_fractions": [0.05]}
VARIANTS = {"plain": {}, "long": {"method": {"iterations": 11}}, "random": {"method": {"name": "random"}}}


def sweep(**changes):
    return SweepSpec(**{"base": {"preset": "smoke"}, "variants": VARIANTS, "seeds": 2, "evaluate": MEASURE, **changes})


def planned(**changes):
    return plan_sweep(sweep(**changes), DIGITS)


def test_steps_that_variants_share_are_one_step():
    plan = planned()
    assert len({step.key for step in plan}) == len(plan)
    assert Counter(step.kind for step in plan)["teacher"] == 2
    assert {"0/teacher", "1/targets", "0/experts-0", "0/random-0", "plain/0/distill", "long/1/distill", "dataset-449a2107"} <= set(
        plan.steps
    )
    assert [step.name for step in plan][-1] == "ranking"
    assert all(step.queue == "cpu" for step in plan if step.kind == "ranking")


def test_each_distillation_and_evaluation_is_what_it_would_be_alone():
    spec = sweep()
    plan = plan_sweep(spec, DIGITS)
    keys = {step.key for step in plan}
    for number in (0, 1):
        for variant in VARIANTS:
            alone = distillation(spec, variant, number)
            assert alone.seed == number
            made = {step.name: step.key for step in plan_distill(alone, DIGITS["digits-train"])}
            assert made["distill"] in keys
            measured = EvaluateSpec(synthetic_set="s", **measure(spec, number).model_dump())
            whole = plan_evaluate(measured, alone, DIGITS["digits-train"], DIGITS)
            assert {step.key for step in whole if step.kind != "report"} <= keys
    ranking = plan.steps["ranking"].params
    assert ranking["seeds"] == [0, 1]
    assert ranking["budgets"] == {
        "plain": {"images": 20, "steps": 10},
        "long": {"images": 20, "steps": 10},
        "random": {"images": 20, "steps": 80},
    }
    rebuilt = Plan()
    for step in plan:  # so every input is there before its reader, and has the right name
        rebuilt.add(step.name, step.kind, step.params, step.inputs, step.queue)
    assert [step.key for step in rebuilt] == [step.key for step in plan]


def test_the_ranking_reads_cells_and_teachers_by_seed_then_variant():
    inputs = planned().steps["ranking"].inputs
    assert inputs["cells"][:4] == ("plain/0/evaluate-0-0", "plain/0/evaluate-0-1", "long/0/evaluate-0-0", "long/0/evaluate-0-1")
    # evaluations of another distillation draw their own initialisations, labels and subsets
    assert inputs["cells"][6:8] == ("plain/1/evaluate-0-2", "plain/1/evaluate-0-3")
    assert inputs["teachers"] == ("0/teacher",) * 3 + ("1/teacher",) * 3


def test_variants_that_are_one_share_every_step_and_are_ranked_as_two():
    plan = planned(variants={"one": {}, "same": {}}, seeds=1)
    assert plan.steps["ranking"].inputs["cells"] == ("0/evaluate-0-0", "0/evaluate-0-1") * 2
    assert Counter(step.kind for step in plan)["evaluate"] == 2


def test_variants_with_teachers_of_their_own_have_names_of_their_own():
    other = {"teacher": {"lr": 0.5}}
    plan = planned(variants={"a": {}, "b": {"method": {"iterations": 3}}, "c": other, "d": other | {"num_images": 10}}, seeds=1)
    assert plan.steps["ranking"].inputs["teachers"] == ("0/teacher", "0/teacher", "c/0/teacher", "c/0/teacher")


def test_a_validation_split_leaves_the_test_images_out_of_the_graph():
    read = planned(evaluate=MEASURE | {"validation": 0.3})
    assert DIGITS["digits-test"].digest[:8] not in "".join(read.steps)
    assert all(step.params["validation"] == 0.3 for step in read if step.kind in ("tune", "evaluate", "ranking"))
    assert all("downstream_test" not in step.inputs for step in read)
    tested = {step.key for step in planned() if step.kind in ("tune", "evaluate")}
    assert not tested & {step.key for step in read}


def test_what_is_wrong_is_said_of_its_variant_or_once_of_the_base():
    bare = DatasetFacts("bare", {"archive": "ab"}, 300, (1, 8, 8), None)
    with pytest.raises(SpecError) as caught:
        plan_sweep(sweep(variants={"ok": {}, "big": {"num_images": 5000}}, evaluate=MEASURE | {"label_fractions": [0.001]}), DIGITS)
    assert [problem.loc for problem in caught.value.problems] == [("variants", "big", "num_images"), ("evaluate", "label_fractions", 0)]
    with pytest.raises(SpecError) as caught:
        plan_sweep(sweep(base={"preset": "smoke", "num_images": 5000}), DIGITS)
    assert [problem.loc for problem in caught.value.problems] == [("base", "num_images")]
    with pytest.raises(SpecError) as caught:
        plan_sweep(sweep(evaluate=MEASURE | {"downstream": [{"train": "bare", "test": "digits-test"}]}), DIGITS | {"bare": bare})
    assert [problem.loc for problem in caught.value.problems] == [("evaluate", "downstream", 0, "train")]


def test_datasets_are_named_where_they_are_first_given():
    assert datasets_of(sweep(variants={"a": {}, "b": {"dataset": "mine"}})) == {
        "digits-train": ("base", "dataset"),
        "mine": ("variants", "b", "dataset"),
        "digits-test": ("evaluate", "downstream", 0, "test"),
    }


REFUSED = [
    ({"preset": "nope"}, ("preset",), "no sweep is called that; there are: ablation-digits"),
    ({"base": {"preset": "smoke", "num_images": 0}}, ("base", "num_images"), "greater than or equal to 1"),
    ({"variants": {"a": {"method": {"iterations": 0}}}}, ("variants", "a", "method", "mkdt", "iterations"), "greater than or equal to 1"),
    ({"variants": {"a": {"preset": "nope"}}}, ("variants", "a", "preset"), "no preset is called that"),
    ({"variants": {"a": {"colour": 1}}}, ("variants", "a", "colour"), "Extra inputs"),
    ({"variants": {"a": 3}}, ("variants", "a"), "valid dictionary"),
    ({"variants": {"a/b": {}}}, ("variants", "a/b", "[key]"), "match pattern"),
    ({"variants": {}}, ("variants",), "at least 1"),
    ({"variants": {"a": {"seed": 3}, "b": {}}}, ("variants",), "give base.seed instead"),
    ({"seeds": 0}, ("seeds",), "greater than or equal to 1"),
    ({"seeds": 200, "evaluate": MEASURE | {"seeds": 4}}, (), "make 2,400 evaluations, and a sweep holds 2,000"),
    ({"evaluate": MEASURE | {"validation": 0.6}}, ("evaluate", "validation"), "less than or equal to 0.5"),
    ({"evaluate": MEASURE | {"synthetic_set": "s"}}, ("evaluate", "synthetic_set"), "Extra inputs"),
]


@pytest.mark.parametrize(("changes", "loc", "words"), REFUSED)
def test_a_sweep_that_is_not_one_is_refused_with_one_error_where_it_lies(changes, loc, words):
    with pytest.raises(ValidationError) as caught:
        sweep(**changes)
    (error,) = caught.value.errors()
    assert error["loc"] == loc
    assert words in error["msg"]


def test_variants_are_merged_over_the_base_and_written_out_in_full():
    spec = sweep(
        base={"preset": "smoke", "method": {"inner_steps": 7}, "seed": 3},
        variants={
            "a": {"method": {"iterations": 2}},
            "b": {"method": {"name": "dino_tm"}},
            "c": {"preset": "demo"},
            "d": {"student": {"width": 4}},
        },
    )
    a, b, c, d = spec.variants.values()
    assert (a.method.iterations, a.method.inner_steps, a.seed) == (2, 7, 3)
    assert (b.method.name, b.method.inner_steps, b.method.iterations) == ("dino_tm", 7, 10)
    assert (c.method.inner_steps, c.experts.num, c.seed) == (20, 32, 3)
    assert (d.student.width, d.student.depth) == (4, 2)
    assert a.model_dump(exclude={"method"}) == DistillSpec(preset="smoke", seed=3).model_dump(exclude={"method", "preset"}) | {
        "preset": None
    }
    assert SweepSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert SweepSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_variant_may_bring_a_required_choice_of_its_own_and_the_base_be_left_out():
    spec = SweepSpec(variants={"a": {"method": {"iterations": 2}}}, evaluate=MEASURE)
    assert spec.variants["a"].method.iterations == 2
    assert spec.variants["a"].num_images == DistillSpec().num_images


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_a_ready_sweep_has_a_plan_and_fields_to_override(name):
    spec = SweepSpec(preset=name, seeds=2, variants={"mine": {"num_images": 10}}, evaluate={"seeds": 1})
    assert set(spec.variants) == {*SWEEPS[name]["variants"], "mine"}
    assert (spec.seeds, spec.evaluate.seeds, spec.evaluate.downstream[0].train) == (2, 1, spec.base.dataset)
    plan = plan_sweep(spec, {ref: facts(ref) for ref in datasets_of(spec)})
    kinds = Counter(step.kind for step in plan)
    assert (kinds["evaluate"], kinds["teacher"]) == (2 * len(spec.variants), 2)


def test_the_largest_sweep_is_planned_in_seconds():
    variants = {f"v{number}": {"method": {"iterations": 10 + number}} for number in range(50)}
    plan = planned(variants=variants, seeds=8, evaluate=MEASURE | {"seeds": 5})
    assert len(plan.steps["ranking"].inputs["cells"]) == 2000
