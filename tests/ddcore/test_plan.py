"""Plans: keys name all that determines a step's output and nothing else; checks name field, given and allowed."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcore import plan as planning
from ddcore.checks import DatasetFacts, check_distill, check_evaluate, check_observe, digest, labels_of_class
from ddcore.data.builtins import facts
from ddcore.errors import SpecError
from ddcore.networks.student_sizes import num_parameters
from ddcore.plan import expert_epochs, horizon, plan_dataset, plan_distill, plan_evaluate, plan_observe
from ddcore.specs import DistillSpec, EvaluateSpec, ObserveSpec, StudentSpec

DIGITS = facts("digits-train")
TEST = facts("digits-test")
SMOKE = {"preset": "smoke", "experts": {"num": 5, "per_shard": 2}}


def spec_of(**changes):
    return DistillSpec.model_validate(planning_body(changes))


def planning_body(changes):
    body = json.loads(json.dumps(SMOKE))
    for key, value in changes.items():
        body[key] = {**body.get(key, {}), **value} if isinstance(value, dict) else value
    return body


def keys_of(data=DIGITS, **changes):
    return {step.name: step.key for step in plan_distill(spec_of(**changes), data)}


def changed(one, other):
    return {name.rstrip("0123456789-") for name in one if one[name] != other.get(name)}


AFTER_TARGETS = {"experts", "init-high_loss", "distill", "export", "figures"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"preset": "smoke"}, set()),
        ({"method": {"name": "mkdt", "iterations": 11}}, {"distill", "export", "figures"}),
        ({"method": {"name": "mkdt", "lr_rate": 0.5}}, {"distill", "export", "figures"}),
        ({"num_images": 21}, {"init-high_loss", "distill", "export", "figures"}),
        ({"experts": {"per_shard": 3}}, AFTER_TARGETS),
        ({"experts": {"momentum": 0.5}}, AFTER_TARGETS),
        ({"student": {"width": 12}}, AFTER_TARGETS),
        ({"method": {"name": "mkdt", "max_start_epoch": 3}}, AFTER_TARGETS),  # the experts must run for longer
        ({"teacher": {"lr": 0.5}}, {"teacher", "targets"} | AFTER_TARGETS),
        ({"seed": 1}, {"teacher", "targets"} | AFTER_TARGETS),
    ],
)
def test_a_change_changes_the_keys_of_what_it_determines_and_no_others(changes, expected):
    assert changed(keys_of(), keys_of(**changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experts": {"lr": 0.5}}, {"distill", "export", "figures"}),  # the rate that the set states
        ({"experts": {"momentum": 0.5}}, set()),  # there are no experts
        ({"student": {"width": 12}}, {"figures"}),
    ],
)
def test_a_random_subset_depends_on_little(changes, expected):
    chosen = {"method": {"name": "random"}}
    assert changed(keys_of(**chosen), keys_of(**chosen, **changes)) == expected


def test_the_name_of_a_dataset_is_in_no_key_and_its_source_is_in_all():
    renamed = DatasetFacts("another name", DIGITS.source, *[getattr(DIGITS, f) for f in ("num_images", "image_shape", "class_counts")])
    assert keys_of(renamed) == keys_of()
    other = DatasetFacts(DIGITS.name, {"archive": "ab"}, DIGITS.num_images, DIGITS.image_shape, DIGITS.class_counts)
    assert not set(keys_of(other).values()) & set(keys_of().values())


def test_a_spec_written_out_has_the_same_keys_as_its_preset():
    whole = spec_of().model_dump(mode="json", exclude={"preset"})
    assert {step.name: step.key for step in plan_distill(DistillSpec(**json.loads(json.dumps(whole))), DIGITS)} == keys_of()


def test_a_raised_version_changes_the_keys_from_that_step_on(monkeypatch):
    before = keys_of()
    monkeypatch.setitem(planning.STEP_VERSION, "experts", 99)
    assert changed(before, keys_of()) == AFTER_TARGETS


def test_shards_divide_the_experts_without_gap_or_overlap():
    for per_shard in (1, 2, 4, 5, 9):
        shards = [s.params for s in plan_distill(spec_of(experts={"per_shard": per_shard}), DIGITS) if s.kind == "experts"]
        assert [i for p in shards for i in range(p["first"], p["first"] + p["count"])] == list(range(5))
        assert max(p["count"] for p in shards) <= per_shard


def test_an_evaluation_reuses_every_step_of_its_distillation_and_adds_fair_baselines():
    distilled = {step.key for step in plan_distill(spec_of(), DIGITS) if step.kind not in ("export", "figures")}
    body = {"synthetic_set": "s", "downstream": [{"train": "digits-train", "test": "digits-test"}], "seeds": 2, "seed": 7}
    plan = plan_evaluate(EvaluateSpec(**body), spec_of(), DIGITS, {"digits-train": DIGITS, "digits-test": TEST})
    steps = {step.name: step for step in plan}
    assert distilled < {step.key for step in plan}
    assert list(steps)[-1] == "report"
    assert steps["report"].inputs["cells"] == ("evaluate-0-7", "evaluate-0-8")
    # every cell draws its own subsets of the same size, and the tuning draws others still
    sets = [steps[name].inputs["sets"] for name in ("tune", "evaluate-0-7", "evaluate-0-8")]
    assert all(one[0] == "distill" and one[3] == "high_loss" for one in sets)
    drawn = [steps[name] for one in sets for name in one[1:3]]
    assert len({step.key for step in drawn}) == len(drawn) == 6
    assert {step.params["num_images"] for step in drawn} == {20}
    # with the high-loss subset that matching began from, under another name
    assert steps["high_loss"].key == steps["init-high_loss"].key
    assert {steps[n].params["pretrain"]["steps"] for n in ("tune", "evaluate-0-7")} == {horizon(spec_of())} == {10}


def test_one_given_rate_needs_no_tuning_and_none_alone_needs_no_sets():
    body = {"synthetic_set": "s", "downstream": [{"train": "digits-train", "test": "digits-test"}], "seeds": 1}
    data = {"digits-train": DIGITS, "digits-test": TEST}
    fixed = plan_evaluate(EvaluateSpec(**body, pretrain={"lr": 0.1}), spec_of(), DIGITS, data)
    assert "tune" not in fixed.steps
    alone = plan_evaluate(EvaluateSpec(**body, baselines=["none"]), spec_of(), DIGITS, data)
    assert alone.steps["evaluate-0-0"].inputs["sets"] == ("distill",)
    assert alone.steps["evaluate-0-0"].params["untrained"]


def test_a_validation_split_is_in_every_step_that_scores_and_test_images_in_none():
    body = {"synthetic_set": "s", "downstream": [{"train": "digits-train", "test": "digits-test"}], "seeds": 1, "validation": 0.3}
    plan = plan_evaluate(EvaluateSpec(**body), spec_of(), DIGITS, {"digits-train": DIGITS, "digits-test": TEST})
    assert [step.name for step in plan if step.params.get("validation") == 0.3] == ["tune", "evaluate-0-0", "report"]
    assert plan.steps["report"].params["tasks"] == ["digits-train -> 30 % of it held out"]
    assert {step.name for step in plan if step.kind == "dataset"} == {f"dataset-{DIGITS.digest[:8]}"}


@pytest.mark.parametrize(("start", "span", "inner", "steps"), [(2, 2, 40, 80), (0, 1, 40, 40), (3, 2, 5, 13), (10, 1, 100, 1100)])
def test_the_horizon_lays_windows_end_to_end_to_the_last_matched_epoch(start, span, inner, steps):
    spec = DistillSpec(method={"name": "mkdt", "max_start_epoch": start, "expert_epochs": span, "inner_steps": inner})
    assert horizon(spec) == steps
    assert expert_epochs(spec, 1000) == start + span
    assert expert_epochs(DistillSpec(method={"name": "high_loss"}), 1000) == 1


def test_inputs_come_before_what_reads_them():
    for plan in (plan_dataset(DIGITS), plan_distill(spec_of(), DIGITS)):
        seen = set()
        for step in plan:
            assert {name for names in step.inputs.values() for name in names} <= seen
            seen.add(step.name)
        assert len(seen) == len(plan)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_digest_sees_values_and_not_their_order_or_their_way_through_json(value):
    backwards = dict(reversed(value.items()))
    assert digest(value) == digest(backwards) == digest(json.loads(json.dumps(value)))
    assert digest({**value, "one more": 1}) != digest(value)


def test_a_digest_is_the_sha256_of_canonical_json():
    assert digest({"b": [1, 2.5, None], "a": "é"}) == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()
    assert digest({"a": 1}) != digest({"a": "1"})
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


BARE = DatasetFacts("bare", {"archive": "ab"}, 1297, (1, 8, 8), None)
TINY = DatasetFacts("tiny", {"archive": "ab"}, 15, (1, 8, 8), None)


@pytest.mark.parametrize(
    ("changes", "data", "loc", "given_", "allowed"),
    [
        ({"num_images": 1298}, DIGITS, ("num_images",), 1298, "1 to 1297"),
        ({"num_images": 5}, TINY, ("dataset",), 15, "16 images or more"),
        ({"student": {"depth": 4}}, DIGITS, ("student", "depth"), 4, "1 to 3"),
        ({"student": {"name": "vgg11", "depth": 5}}, DIGITS, ("student", "name"), "vgg11", "convnet, or images of at least 32x32 pixels"),
        ({"teacher": {"backbone": {"name": "convnet", "depth": 5}}}, DIGITS, ("teacher", "backbone", "depth"), 5, "1 to 3"),
        ({"teacher": {"min_knn_accuracy": 50}}, BARE, ("teacher", "min_knn_accuracy"), 50, "0"),
    ],
)
def test_what_a_dataset_forbids_is_refused_before_any_work(changes, data, loc, given_, allowed):
    (problem,) = check_distill(spec_of(**changes), data)
    assert (problem.loc, problem.given, problem.allowed) == (loc, given_, allowed)
    with pytest.raises(SpecError, match=r"\.".join(map(str, loc))):
        plan_distill(spec_of(**changes), data)


def problems_of(train=DIGITS, test=TEST, **fields):
    spec = EvaluateSpec(synthetic_set="s", downstream=[{"train": "a", "test": "b"}], **fields)
    return [(p.loc, p.given, p.allowed) for p in check_evaluate(spec, spec_of(), DIGITS, {"a": train, "b": test})]


def labelled(*counts):
    return DatasetFacts("some", {"archive": "cd"}, sum(counts), (1, 8, 8), counts)


def test_evaluations_that_make_no_sense_are_refused_before_any_work():
    assert problems_of() == []
    assert problems_of(train=BARE) == [(("downstream", 0, "train"), "a", "a labelled dataset")]
    assert problems_of(test=BARE) == [(("downstream", 0, "test"), "b", "a labelled dataset")]
    assert problems_of(test=labelled(5, 5)) == [(("downstream", 0, "test"), 2, "10 classes")]
    assert problems_of(networks=[{"depth": 2}, {"depth": 4}]) == [(("networks", 1, "depth"), 4, "1 to 3")]
    assert problems_of(networks=[{"name": "resnet18"}, {"name": "vgg11"}]) == [
        (("networks", 1, "name"), "vgg11", "convnet, or images of at least 32x32 pixels")
    ]
    assert problems_of(label_fractions=[0.5, 0.003]) == [(("label_fractions", 1), 0.003, "0.0039683 or more")]
    assert problems_of(labelled(0, 9), labelled(1, 9), label_fractions=[1.0]) == [
        (("label_fractions", 0), 1.0, "a dataset with images in every class")
    ]


def test_fractions_are_of_the_images_that_a_validation_split_leaves():
    train, test = labelled(5, 9), labelled(5, 9)
    assert problems_of(train, test, label_fractions=[0.1]) == []
    # of five images, half up, three are held out and two left
    assert problems_of(train, test, label_fractions=[0.2], validation=0.5) == [(("label_fractions", 0), 0.2, "0.25 or more")]
    assert problems_of(train, test, label_fractions=[0.25], validation=0.5) == []
    assert problems_of(labelled(1, 9), test, label_fractions=[0.5], validation=0.5) == []  # one alone is never held out


@given(st.integers(1, 10**6))
def test_the_fraction_that_a_refusal_allows_is_allowed(rarest):
    data = labelled(rarest, 10**6)
    ((_, _, allowed),) = problems_of(data, labelled(1, 1), label_fractions=[0.49 / rarest])
    least = float(allowed.removesuffix(" or more"))
    assert labels_of_class(least, rarest) == 1
    assert problems_of(data, labelled(1, 1), label_fractions=[least]) == []
    assert labels_of_class(1.0, rarest) == rarest


def test_parameters_are_counted_by_hand():
    # 8x8 grey: 4 * (9 + 1 + 2) + 4 * (36 + 1 + 2) + (4 * 2 * 2 + 1) * 6
    assert num_parameters(StudentSpec(depth=2, width=4), (1, 8, 8), 6) == 48 + 156 + 102


def observation(**fields):
    return ObserveSpec(teacher=spec_of().teacher, student={"depth": 2, "width": 8}, **fields)


def test_an_observation_trains_what_a_distillation_of_these_settings_trains_and_its_repetitions():
    plan = plan_observe(observation(runs=3, experts=12, epochs=4, seed=5), DIGITS)
    assert [step.name for step in plan] == [
        *["dataset-449a2107", "teacher", "teacher-1", "teacher-2", "targets", "experts-0", "experts-1", "observe"]
    ]
    assert plan.steps["teacher"].key == keys_of(seed=5)["teacher"]
    assert [plan.steps[f"teacher-{run}"].params.get("run") for run in (1, 2)] == [1, 2]
    assert "run" not in plan.steps["teacher"].params
    assert plan.steps["experts-1"].params["epochs"] == 4
    assert plan.steps["observe"].inputs == {
        "dataset": ("dataset-449a2107",),
        "teacher": ("teacher", "teacher-1", "teacher-2"),
        "targets": ("targets",),
        "experts": ("experts-0", "experts-1"),
    }
    alone = plan_observe(observation(), DIGITS)
    assert [step.kind for step in alone] == ["dataset", "teacher", "observe"]
    assert alone.steps["observe"].key != plan.steps["observe"].key
    assert plan_observe(ObserveSpec(), DatasetFacts("flat", {"archive": "ab"}, 100, (3, 4, 4), None)).steps["observe"]  # no student is read


def test_observations_that_make_no_sense_are_refused_before_any_work():
    few = observation().model_copy(update={"teacher": spec_of(teacher={"snapshots": 2}).teacher})
    (problem,) = check_observe(few, DIGITS)
    assert (problem.loc, problem.given, problem.allowed) == (("teacher", "snapshots"), 2, "3 or more")
    with pytest.raises(SpecError, match=r"student\.depth"):
        plan_observe(observation(experts=1).model_copy(update={"student": StudentSpec(depth=4)}), DIGITS)
    (problem,) = check_observe(observation(), TINY)
    assert problem.loc == ("dataset",)


def test_each_kind_of_step_has_its_queue():
    """What reads and writes does not hold a place that computes, and what computes little leaves the accelerators alone."""
    facts = {"digits-train": DIGITS, "digits-test": DIGITS}
    evaluation = EvaluateSpec(synthetic_set="s", downstream=[{"train": "digits-train", "test": "digits-test"}], seeds=2)
    steps = [*plan_evaluate(evaluation, spec_of(), DIGITS, facts), *plan_distill(spec_of(), DIGITS), *plan_observe(ObserveSpec(), DIGITS)]
    queues = {}
    for step in steps:
        queues.setdefault(step.queue, set()).add(step.kind)
    assert queues["io"] == {"dataset", "export"}
    assert queues["gpu"] == {"teacher", "targets", "experts", "distill", "tune", "evaluate"}
    assert queues["cpu"] == {"distill", "figures", "report", "observe"}  # a set of chosen images needs no accelerator
