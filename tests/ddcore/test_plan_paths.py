"""Plans of the methods that match trajectories: what their experts follow, for how long, and what they share."""

import json
import math

import pytest

from ddcore.checks import check_distill, check_observe
from ddcore.data.builtins import facts
from ddcore.errors import SpecError
from ddcore.lag import epochs_to_record
from ddcore.plan import expert_epochs, horizon, plan_distill, plan_evaluate, plan_observe
from ddcore.specs import DistillSpec, EvaluateSpec, ObserveSpec

DIGITS = facts("digits-train")
SMOKE = {"preset": "smoke", "experts": {"num": 3, "per_shard": 2}}
SIMCLR = {"ssl": "simclr", "backbone": {"name": "convnet", "width": 16, "depth": 2}, "epochs": 5}
GIVEN = {"ssl": "given", "source": "timm", "backbone": {"name": "vit_small_patch14_dinov2"}}


def spec_of(name="dino_tm", experts=None, teacher=None, **method):
    body = json.loads(json.dumps(SMOKE))
    body["experts"] |= experts or {}
    return DistillSpec.model_validate(body | {"method": {"name": name, **method}} | ({"teacher": teacher} if teacher else {}))


def steps_of(*args, **fields):
    return {step.name: step for step in plan_distill(spec_of(*args, **fields), DIGITS)}


def experts_of(steps):
    return [name for name, step in steps.items() if step.kind == "experts"]


LONG = {"epochs": 9}  # long enough to record own paths


@pytest.mark.parametrize("path", ["staged", "teacher", "student"])
def test_all_paths_of_dino_tm_share_the_teacher_of_mkdt_and_score_by_experts_of_the_finished_one(path):
    theirs, ours = steps_of("mkdt", teacher=LONG), steps_of(path=path, teacher=LONG)
    assert all(ours[name].key == theirs[name].key for name in ("teacher", "targets"))
    assert experts_of(ours) == ["experts-0", "experts-1", "scorers-0", "scorers-1"]
    assert ours["distill"].inputs["experts"] == ("experts-0", "experts-1")
    assert ours["figures"].inputs["experts"] == ("experts-0", "experts-1")
    assert ours["init-high_loss"].inputs["experts"] == ("scorers-0", "scorers-1")
    for shard in (0, 1):
        matched, scorer = ours[f"experts-{shard}"].params, ours[f"scorers-{shard}"].params
        assert matched["path"] == path
        assert "path" not in scorer
        assert (matched["epochs"], scorer["epochs"]) == (2, 1)  # a score is taken after one epoch
        assert [matched[name] for name in ("first", "count")] == [scorer[name] for name in ("first", "count")]
        assert ours[f"scorers-{shard}"].inputs == theirs[f"experts-{shard}"].inputs


def test_a_set_that_begins_from_random_images_needs_no_scorers():
    assert experts_of(steps_of(init="random")) == ["experts-0", "experts-1"]


def test_staged_experts_read_the_stages_of_the_teacher_over_the_matched_epochs():
    steps = steps_of(stages=3, max_start_epoch=4, expert_epochs=2)
    stages = steps["stages"]
    assert (stages.kind, stages.params, stages.inputs["teacher"]) == ("targets", {"stages": 3}, ("teacher",))
    for name in ("experts-0", "experts-1"):
        assert steps[name].inputs["stages"] == ("stages",)
        assert "teacher" not in steps[name].params
        assert (steps[name].params["epochs"], steps[name].params["stage_epochs"]) == (6, 6)
    assert "stages" not in steps["scorers-0"].inputs


def test_stages_end_with_the_matched_epochs_and_not_with_those_that_an_average_runs_on_for():
    """Else windows, which are read by the lag, would see the first of the stages only."""
    params = steps_of(experts={"ema": 0.98}, max_start_epoch=2, expert_epochs=2)["experts-0"].params
    assert params["epochs"] > 4
    assert params["stage_epochs"] == 4


@pytest.mark.parametrize(("path", "teacher"), [("teacher", LONG), ("student", LONG), ("student", SIMCLR)])
def test_own_paths_are_those_of_the_teachers_recipe_and_read_no_stage(path, teacher):
    spec = spec_of(path=path, teacher=teacher)
    steps = {step.name: step for step in plan_distill(spec, DIGITS)}
    assert steps["experts-0"].params["teacher"] == spec.teacher.model_dump(mode="json")
    assert "stages" not in steps


def test_the_final_path_of_dino_tm_is_that_of_mkdt_plus_and_its_experts_are_shared():
    theirs, ours = steps_of("mkdt_plus"), steps_of(path="final")
    assert [ours[name].key for name in experts_of(ours)] == [theirs[name].key for name in experts_of(theirs)]
    assert "path" not in ours["experts-0"].params
    assert ours["init-high_loss"].key == theirs["init-high_loss"].key
    assert ours["distill"].key != theirs["distill"].key


def test_mkdt_plus_and_mkdt_share_experts_of_raw_paths():
    theirs, ours = steps_of("mkdt"), steps_of("mkdt_plus")
    assert {name for name in ours if ours[name].key != theirs[name].key} == {"distill", "export", "figures"}


@pytest.mark.parametrize(
    ("name", "fields", "ema", "lagging"),
    [
        ("mkdt", {}, 0.9, False),
        ("mkdt_plus", {}, 0.9, True),
        ("mkdt_plus", {"lag": False}, 0.9, False),
        ("mkdt_plus", {}, None, False),
        ("dino_tm", {"path": "staged"}, 0.9, True),
        ("dino_tm", {"path": "final"}, 0.9, True),
        ("dino_tm", {"path": "teacher"}, 0.9, False),  # its average has a decay that rises, and is matched as it is
        ("dino_tm", {"path": "student"}, 0.9, False),
    ],
)
def test_averaged_paths_are_recorded_for_as_long_as_their_lag_asks_and_read_at_that_pace(name, fields, ema, lagging):
    spec = spec_of(name, {"ema": ema, "batch_size": 128}, LONG, max_start_epoch=3, expert_epochs=1, **fields)
    steps = {step.name: step for step in plan_distill(spec, DIGITS)}
    recorded = epochs_to_record(4, 0.9, math.ceil(1297 / 128)) if lagging else 4
    assert steps["experts-0"].params["epochs"] == expert_epochs(spec, 1297) == recorded
    assert (recorded > 4) == lagging
    assert steps["distill"].params.get("pace") == ({"decay": 0.9, "batch_size": 128} if lagging else None)
    assert horizon(spec) == 20  # of the expert's own time, whatever is recorded


def test_an_evaluation_scores_high_loss_by_experts_of_the_finished_teacher():
    body = {"synthetic_set": "s", "downstream": [{"train": "digits-train", "test": "digits-test"}], "seeds": 1}
    data = {"digits-train": DIGITS, "digits-test": facts("digits-test")}
    plan = plan_evaluate(EvaluateSpec(**body), spec_of(), DIGITS, data)
    assert plan.steps["high_loss"].key == plan.steps["init-high_loss"].key
    assert plan.steps["high_loss"].inputs["experts"] == ("scorers-0", "scorers-1")
    assert plan.steps["distill"].inputs["experts"] == ("experts-0", "experts-1")


@pytest.mark.parametrize("teacher", [SIMCLR, GIVEN], ids=["simclr", "given"])
@pytest.mark.parametrize("path", ["staged", "final", "teacher"])
def test_there_is_no_dino_run_of_another_teacher_to_match(teacher, path):
    spec = spec_of(path=path, teacher=teacher)
    (problem,) = [one for one in check_distill(spec, DIGITS) if one.loc[0] == "method"]
    assert (problem.loc, problem.given) == (("method", "name"), "dino_tm")
    assert f"no DINO run of a {teacher['ssl']} teacher" in problem.message
    own = (
        ""
        if problem.message.startswith("there is no DINO run of a given")
        else ", or path student for the student network's own simclr run"
    )
    assert problem.allowed == f"teacher.ssl dino, or method mkdt_plus{own}"
    with pytest.raises(SpecError, match="no DINO run"):
        plan_distill(spec, DIGITS)
    assert not [one for one in check_distill(spec_of("mkdt_plus", teacher=teacher), DIGITS) if one.loc[0] == "method"]


def test_the_student_path_is_there_for_any_teacher_that_is_trained_here():
    assert check_distill(spec_of(path="student", teacher=SIMCLR), DIGITS) == []
    assert [one.loc for one in check_distill(spec_of(path="student", teacher=GIVEN), DIGITS) if one.loc[0] == "method"] == [
        ("method", "name")
    ]


@pytest.mark.parametrize("path", ["teacher", "student"])
def test_a_run_too_short_to_record_its_own_path_is_refused(path):
    (problem,) = check_distill(spec_of(path=path, max_start_epoch=2, expert_epochs=1), DIGITS)  # the smoke teacher runs for two
    assert (problem.loc, problem.given) == (("teacher", "epochs"), 2)
    assert problem.allowed.startswith("3 or more")
    assert check_distill(spec_of(path=path, max_start_epoch=2, expert_epochs=1, teacher={"epochs": 3}), DIGITS) == []


def test_more_stages_than_the_run_has_snapshots_are_refused():
    (problem,) = check_distill(spec_of(stages=6), DIGITS)  # it keeps six, the first of which is its initialisation
    assert (problem.loc, problem.given, problem.allowed) == (("teacher", "snapshots"), 6, "more than 6")
    assert check_distill(spec_of(stages=5), DIGITS) == []


def observation(**fields):
    smoke = DistillSpec.model_validate(SMOKE)
    return ObserveSpec(**{"teacher": smoke.teacher, "student": smoke.student, "experts": 3, "epochs": 2} | fields)


@pytest.mark.parametrize("path", ["final", "staged", "teacher", "student"])
@pytest.mark.parametrize("same_start", [True, False])
def test_an_observations_experts_follow_its_path_from_one_start_or_many(path, same_start):
    plan = plan_observe(observation(path=path, same_start=same_start), DIGITS)
    params = plan.steps["experts-0"].params
    assert params.get("path", "final") == path
    assert params.get("same_start", False) == same_start
    assert [plan.steps["observe"].params[name] for name in ("path", "same_start")] == [path, same_start]
    assert params["epochs"] == 2
    assert ("stages" in plan.steps) == (path == "staged")


def test_an_observed_path_shares_its_experts_with_a_distillation_that_matches_it():
    distilled = steps_of(max_start_epoch=1, expert_epochs=1)
    observed = plan_observe(observation(path="staged", same_start=False, training={"batch_size": 128, "per_shard": 2}), DIGITS)
    assert observed.steps["experts-0"].key == distilled["experts-0"].key


@pytest.mark.parametrize("path", ["staged", "teacher"])
def test_an_observation_of_a_path_that_is_not_there_is_refused_by_its_own_field(path):
    (problem,) = check_observe(observation(path=path, teacher=SIMCLR), DIGITS)
    assert (problem.loc, problem.given) == (("path",), path)
    assert "no DINO run of a simclr teacher" in problem.message
    assert problem.allowed == "teacher.ssl dino, or path final or student"
    assert check_observe(observation(path="final", teacher=SIMCLR), DIGITS) == []
    assert check_observe(observation(path="student", teacher=SIMCLR), DIGITS) == []


def test_the_path_of_experts_that_are_not_asked_for_is_not_read():
    assert check_observe(observation(path="teacher", experts=0, epochs=50), DIGITS) == []
    (problem,) = check_observe(observation(path="teacher", epochs=50), DIGITS)
    assert (problem.loc, problem.given, problem.allowed) == (("teacher", "epochs"), 2, "50 or more, or fewer epochs")


@pytest.mark.parametrize(("field", "value"), [("local_crop_size", 4), ("masked_patches", 1.0)])
def test_a_recipe_that_the_student_network_cannot_be_trained_by_is_refused_for_own_paths_alone(field, value):
    teacher = LONG | {"backbone": {"name": "vit_tiny_patch4"}, field: value}
    refused = {path: [one.loc for one in check_distill(spec_of(path=path, teacher=teacher), DIGITS)] for path in ("teacher", "student")}
    assert refused == {path: [("teacher", field)] for path in refused}
    assert check_distill(spec_of(path="staged", teacher=teacher), DIGITS) == []
