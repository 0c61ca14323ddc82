"""From a posted spec to a job: planning, reuse, idempotency, retries, dry runs, checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import func, select

from ddcore.errors import DdcoreError, SpecError
from ddcore.networks.shapes import expected_shapes
from ddcore.specs import BackboneSpec, DistillSpec, EvaluateSpec, ObserveSpec
from jobs import views
from jobs.cancel import cancel
from jobs.checkpoints import add_checkpoint, read_checkpoint
from jobs.claims import fail
from jobs.create import clone, create_distill, create_evaluate, create_observe, dry_run, retry
from jobs.errors import IdempotencyConflict, NotFound, WrongState
from jobs.models import Job, Step
from tests.jobs.harness import SMOKE, World, at_once

CONVNET = BackboneSpec(name="convnet", width=8, depth=2)


def distill(world: World, spec: DistillSpec = SMOKE, **options: Any) -> str:
    return world.database.write(lambda s: create_distill(s, world.store, spec, **options).id)


def evaluation(world: World, made: str, **fields: Any) -> EvaluateSpec:
    body = {
        "synthetic_set": made,
        "downstream": [{"train": "digits-train", "test": "digits-test"}],
        "seeds": 2,
        "baselines": ["random", "none"],
        "label_fractions": [0.1],
    }
    return EvaluateSpec.model_validate(body | fields)


def test_a_distillation_from_post_to_synthetic_set(world: World) -> None:
    job_id = distill(world, labels=["b", "a", "b"], priority=2)
    job = world.job(job_id)
    assert (job.kind, job.state, job.labels, job.priority, job.parent_id) == ("distill", "queued", ["a", "b"], 2, None)
    assert DistillSpec.model_validate(job.spec) == SMOKE
    assert [step.kind for step in job.steps] == [
        *["dataset", "teacher", "targets", "experts", "experts", "distill", "distill", "export", "figures"]
    ]
    assert [step.state for step in job.steps].count("ready") == 1
    done = world.finish_job(job_id)
    assert done.state == "succeeded"
    made = world.database.read(lambda s: views.synthetic_set(s, done.results["synthetic_set"]))
    assert made.model_dump(exclude={"id", "created_at"}) == {
        "job_id": job_id,
        "method": "mkdt",
        "num_images": 20,
        "image_shape": (1, 8, 8),
        "target_dim": None,
        "learned_lr": None,
        "learned_lrs": None,
        "dataset_id": "ds_digits-train",
    }
    assert [one.id for one in world.database.read(lambda s: views.synthetic_sets(s)).data] == [made.id]


def test_another_method_reuses_the_teacher_and_the_experts(world: World) -> None:
    world.finish_job(distill(world))
    other = DistillSpec.model_validate({"preset": "smoke", "method": {"iterations": 11}})
    cached = {step.name: step.cached for step in world.job(distill(world, other)).steps}
    assert [name for name, reused in cached.items() if not reused] == ["distill", "export", "figures"]


def test_an_evaluation_finds_the_distillation_done(world: World) -> None:
    made = world.finish_job(distill(world)).results["synthetic_set"]
    spec = evaluation(world, made)
    job_id = world.database.write(lambda s: create_evaluate(s, world.store, spec).id)
    steps = {step.name: step.cached for step in world.job(job_id).steps}
    assert steps["distill"]
    assert steps["teacher"]
    assert not steps["evaluate-0-0"]
    done = world.finish_job(job_id)
    report = world.database.read(lambda s: views.report(s, done.results["report"]))
    assert (report.synthetic_set_id, report.job_id, report.summary) == (made, job_id, {})
    world.lose_files(job_id, "teacher")
    planned = world.database.read(lambda s: dry_run(s, world.store, evaluation(world, made, seeds=3)))
    assert planned.counts["new"] > 0
    assert "teacher" in [step.name for step in planned.steps if step.state == "new"], "its report reads the teacher's file"


@pytest.mark.parametrize("made", ["syn_nothing", "ds_digits-train"])
def test_an_evaluation_of_nothing_is_refused(world: World, made: str) -> None:
    with pytest.raises(SpecError) as refused:
        world.database.write(lambda s: create_evaluate(s, world.store, evaluation(world, made)))
    assert [problem.loc for problem in refused.value.problems] == [("synthetic_set",)]


def test_every_unknown_dataset_of_an_evaluation_is_named(world: World) -> None:
    made = world.finish_job(distill(world)).results["synthetic_set"]
    spec = evaluation(world, made, downstream=[{"train": "no-train", "test": "digits-test"}, {"train": "digits-train", "test": "no-test"}])
    with pytest.raises(SpecError) as refused:
        world.database.write(lambda s: create_evaluate(s, world.store, spec))
    assert [problem.loc for problem in refused.value.problems] == [("downstream", 0, "train"), ("downstream", 1, "test")]


def test_a_spec_that_makes_no_sense_leaves_no_row(world: World) -> None:
    with pytest.raises(SpecError, match="has only 1297 images"):
        distill(world, DistillSpec(preset="smoke", num_images=5000))
    assert world.database.read(lambda s: s.scalar(select(func.count()).select_from(Job))) == 0
    assert world.database.read(lambda s: s.scalar(select(func.count()).select_from(Step))) == 0


def test_an_idempotency_key_makes_one_job(world: World) -> None:
    jobs = at_once([lambda: distill(world, idempotency_key="k1", labels=["x"])] * 4)
    assert len(set(jobs)) == 1
    assert distill(world, labels=["x"]) != jobs[0]
    for spec, labels in ((SMOKE, ["y"]), (DistillSpec(preset="smoke", seed=1), ["x"])):
        with pytest.raises(IdempotencyConflict, match="k1"):
            distill(world, spec, idempotency_key="k1", labels=labels)
    world.finish_job(jobs[0])
    assert distill(world, idempotency_key="k1", labels=["x"]) == jobs[0]


def test_a_retry_is_a_new_job_that_goes_on_where_the_old_one_failed(world: World) -> None:
    first = distill(world, labels=["x"], priority=3)
    world.run(first, world.job(first).steps[0].name)
    held = world.claim(first, "teacher")
    with pytest.raises(WrongState, match="running"):
        world.database.write(lambda s: retry(s, world.store, first))
    world.database.write(lambda s: fail(s, held.step_id, held.attempt, "teacher_collapsed", "rank 1"))
    assert world.job(first).phase == "failed while training the teacher"
    second = world.database.write(lambda s: retry(s, world.store, first, idempotency_key="again").id)
    assert world.database.write(lambda s: retry(s, world.store, first, idempotency_key="again").id) == second
    with pytest.raises(IdempotencyConflict):
        distill(world, idempotency_key="again")
    job = world.job(second)
    assert (job.parent_id, job.labels, job.priority, job.spec) == (first, ["x"], 3, world.job(first).spec)
    assert [step.cached for step in job.steps[:2]] == [True, False]
    assert world.finish_job(second).state == "succeeded"
    assert world.job(first).state == "failed"
    with pytest.raises(NotFound):
        world.database.write(lambda s: retry(s, world.store, "job_nothing"))


def test_a_clone_is_another_job_of_the_same_spec_from_any_state(world: World) -> None:
    first = distill(world, labels=["x"], priority=4, owner="ada")
    held = world.claim(first, world.job(first).steps[0].name)

    def clone_it(job_id: str, **options: Any) -> str:
        return world.database.write(lambda s: clone(s, world.store, job_id, **options).id)

    second = clone_it(first, idempotency_key="once")
    assert clone_it(first, idempotency_key="once") == second
    with pytest.raises(IdempotencyConflict):
        clone_it(first, idempotency_key="once", priority=5)
    job, was = world.job(second), world.job(first)
    assert (job.parent_id, job.spec, job.labels, job.priority, job.owner) == (first, was.spec, ["x"], 4, "ada")
    assert [step.id for step in job.steps] == [step.id for step in was.steps], "both wait for the same work"
    other = clone_it(first, priority=9, labels=[], owner="bob")
    assert (world.job(other).labels, world.job(other).priority, world.job(other).owner) == ([], 9, "bob")
    assert world.step(first, was.steps[-1].name).owner == "bob", "the most urgent of those who share it"
    for job_id in (second, other):
        world.database.write(lambda s, job_id=job_id: cancel(s, job_id))
    world.finish(held)
    assert world.finish_job(first).state == "succeeded"
    done = world.job(clone_it(second))
    assert (done.state, done.parent_id, all(step.cached for step in done.steps)) == ("succeeded", second, True)
    with pytest.raises(NotFound):
        clone_it("job_nothing")


def test_a_retry_means_the_dataset_that_the_name_meant_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = distill(world)
    world.database.write(lambda s: cancel(s, first))
    with world.database.sessions.begin() as session:
        job = session.get_one(Job, first)
        job.resolved = job.resolved | {"datasets": {"digits-train": "ds_digits-test"}}
    second = world.database.write(lambda s: retry(s, world.store, first).resolved)
    assert second["dataset_id"] == "ds_digits-test"


def test_a_dry_run_tells_what_would_be_new_and_writes_nothing(world: World) -> None:
    planned = world.database.read(lambda s: dry_run(s, world.store, SMOKE))
    assert (planned.kind, planned.counts) == ("distill", {"cached": 0, "shared": 0, "new": 9})
    assert world.database.read(lambda s: s.scalar(select(func.count()).select_from(Step))) == 0
    experts = next(step for step in planned.steps if step.name == "experts-1")
    parameters = 8 * (1 * 9 + 3) + 8 * (8 * 9 + 3) + (8 * 2 * 2 + 1) * 64
    assert experts.inputs == [planned.steps[0].name, "targets"]
    assert experts.disk_bytes == pytest.approx(1 * 3 * parameters * 4, abs=200_001)
    assert planned.disk_bytes == sum(step.disk_bytes for step in planned.steps) > 0
    job_id = distill(world)
    assert world.database.read(lambda s: dry_run(s, world.store, SMOKE)).counts == {"cached": 0, "shared": 9, "new": 0}
    world.finish_job(job_id)
    again = world.database.read(lambda s: dry_run(s, world.store, SMOKE))
    assert (again.counts, again.disk_bytes) == ({"cached": 9, "shared": 0, "new": 0}, 0)


def weights(world: World, name: str = "encoder.safetensors", channels: int = 1, **replaced: Any) -> str:
    tensors = {key: np.zeros(shape, np.float32) for key, shape in (expected_shapes(CONVNET, channels, (8, 8)) or {}).items()}
    tensors |= replaced
    path = world.folder / "weights"
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    blob = read_checkpoint(world.store, path, name)
    return world.database.write(lambda s: add_checkpoint(s, blob, name).id)


def given_teacher(checkpoint: str) -> DistillSpec:
    teacher = {"ssl": "given", "checkpoint": checkpoint, "backbone": CONVNET.model_dump()}
    return DistillSpec.model_validate({"preset": "smoke", "teacher": teacher})


def test_a_given_checkpoint_is_named_by_its_bytes_in_the_step_and_as_sent_in_the_spec(world: World) -> None:
    first = weights(world)
    assert weights(world, "same bytes.safetensors") == first
    job_id = distill(world, given_teacher(first))
    teacher = world.step(job_id, "teacher").params["teacher"]
    assert world.store.exists(teacher["checkpoint"])
    assert world.job(job_id).spec["teacher"]["checkpoint"] == first
    made = world.finish_job(job_id).results["synthetic_set"]
    evaluated = world.database.write(lambda s: create_evaluate(s, world.store, evaluation(world, made)).id)
    assert world.step(evaluated, "teacher").id == world.step(job_id, "teacher").id


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda world: "art_nothing", "there is no such checkpoint"),
        (lambda world: weights(world, channels=3), "blocks.0.weight is [8, 3, 3, 3], not [8, 1, 3, 3]"),
        (lambda world: weights(world, **{"blocks.4.bias": None}), "blocks.4.bias is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_at_once(world: World, make: Any, says: str) -> None:
    spec = given_teacher(make(world))
    with pytest.raises(SpecError) as refused:
        distill(world, spec)
    (problem,) = refused.value.problems
    assert (problem.loc, says in problem.message) == (("teacher", "checkpoint"), True), problem


def test_a_checkpoint_may_have_a_head_and_miss_counters(world: World) -> None:
    artifact = weights(world, **{"fc.weight": np.zeros((10, 32), np.float32)})
    assert world.job(distill(world, given_teacher(artifact))).state == "queued"


def test_what_is_no_safetensors_file_is_refused(world: World) -> None:
    path: Path = world.folder / "pickle.pt"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(DdcoreError, match="not a safetensors file") as refused:
        read_checkpoint(world.store, path, "x.safetensors")
    assert refused.value.code == "bad_checkpoint"


OBSERVATION = ObserveSpec(teacher=SMOKE.teacher, runs=2, experts=1, student=SMOKE.student)


def test_an_observation_shares_its_teacher_with_a_distillation_and_ends_in_a_result(world: World) -> None:
    distilled = distill(world)
    planned = world.database.read(lambda s: dry_run(s, world.store, OBSERVATION))
    assert (planned.kind, planned.counts) == ("observe", {"cached": 0, "shared": 3, "new": 3})  # data set, teacher, targets
    assert all(step.disk_bytes > 0 for step in planned.steps if step.state == "new")
    job_id = world.database.write(lambda s: create_observe(s, world.store, OBSERVATION).id)
    assert world.step(job_id, "teacher").id == world.step(distilled, "teacher").id
    done = world.finish_job(job_id)
    assert (done.kind, done.state) == ("observe", "succeeded")
    seen = world.database.read(lambda s: views.observation(s, done.results["observation"]))
    assert (seen.job_id, seen.dataset_id) == (job_id, "ds_digits-train")


def test_a_cancelled_observation_is_retried(world: World) -> None:
    first = world.database.write(lambda s: create_observe(s, world.store, OBSERVATION).id)
    world.database.write(lambda s: cancel(s, first))
    second = world.database.write(lambda s: retry(s, world.store, first).id)
    assert world.job(second).spec == world.job(first).spec
    assert world.finish_job(second).state == "succeeded"
