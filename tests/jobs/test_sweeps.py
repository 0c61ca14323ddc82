"""Sweeps as jobs: shared steps, the ranking's inputs, estimates, retries, checkpoints; and graphs of a thousand steps."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ddcore.errors import SpecError
from ddcore.networks.shapes import expected_shapes
from ddcore.specs import BackboneSpec, SweepSpec
from ddcore.sweep_presets import SWEEPS
from jobs import claims, views
from jobs.cancel import cancel
from jobs.checkpoints import add_checkpoint, read_checkpoint
from jobs.create import create_distill, create_sweep, dry_run, retry
from tests.jobs.harness import SMOKE, World

MEASURE = {"downstream": [{"train": "digits-train", "test": "digits-test"}], "seeds": 1, "baselines": ["random"], "label_fractions": [0.1]}


def sweep_of(**changes: Any) -> SweepSpec:
    variants = {"plain": {}, "longer": {"method": {"iterations": 11}}}
    return SweepSpec.model_validate({"base": {"preset": "smoke"}, "variants": variants, "seeds": 2, "evaluate": MEASURE} | changes)


def post(world: World, spec: SweepSpec, **options: Any) -> str:
    return world.database.write(lambda s: create_sweep(s, world.store, spec, **options).id)


def test_a_sweep_shares_its_first_distillation_with_one_posted_alone_and_ends_in_a_report(world: World) -> None:
    alone = world.database.write(lambda s: create_distill(s, world.store, SMOKE).id)
    job_id = post(world, sweep_of())
    for name, step in (("0/teacher", "teacher"), ("0/experts-1", "experts-1"), ("plain/0/distill", "distill")):
        assert world.step(job_id, name).id == world.step(alone, step).id
    done = world.finish_job(job_id)
    assert (done.kind, done.state, done.steps[-1].name) == ("sweep", "succeeded", "ranking")
    report = world.database.read(lambda s: views.report(s, done.results["report"]))
    assert (report.job_id, report.synthetic_set_id) == (job_id, None)
    again = world.database.read(lambda s: dry_run(s, world.store, sweep_of(variants={"plain": {}, "another": {"num_images": 10}})))
    fresh = {step.name for step in again.steps if step.state == "new"}
    assert fresh >= {"another/0/distill", "another/1/evaluate-0-1", "ranking"}
    assert not any(name.startswith("plain/") or "teacher" in name or "experts" in name for name in fresh)


def test_the_ranking_is_given_every_cell_and_teacher_in_order_also_twice(world: World) -> None:
    job_id = post(world, sweep_of(variants={"one": {}, "same": {}}))
    world.run(job_id, *[step.name for step in world.job(job_id).steps if step.kind == "dataset"])
    while (ready := [step.name for step in world.job(job_id).steps if step.state == "ready"]) != ["ranking"]:
        world.run(job_id, ready[0])
    held = world.claim(job_id, "ranking")
    inputs = world.database.read(lambda s: claims.load(s, held.step_id, held.attempt)).inputs
    made = {step.id: step.name for step in world.job(job_id).steps}
    files = {
        step: [claims.InputFile(one.name, one.sha256, one.size)]
        for one in world.database.read(lambda s: views.artifacts(s, job_id))
        if (step := one.step) is not None
    }
    assert set(files) == set(made.values()) - {"ranking"}
    assert inputs["cells"] == [files[name] for name in ("0/evaluate-0-0",) * 2 + ("1/evaluate-0-1",) * 2]
    assert inputs["teachers"] == [files[name] for name in ("0/teacher",) * 2 + ("1/teacher",) * 2]


def test_the_estimate_is_of_each_variants_own_settings(world: World) -> None:
    variants = {"small": {}, "large": {"num_images": 1000, "student": {"width": 64}}}
    planned = world.database.read(lambda s: dry_run(s, world.store, sweep_of(variants=variants, seeds=1)))
    size = {step.name: step.disk_bytes for step in planned.steps}
    assert size["large/0/distill"] - size["small/0/distill"] == 980 * (64 + 64) * 4  # images of 64 pixels, targets of 64 numbers
    assert size["large/0/experts-0"] > 10 * (size["small/0/experts-0"] - 200_000)
    assert planned.disk_bytes == sum(size.values())


def test_a_cancelled_sweep_is_retried_as_it_was(world: World) -> None:
    first = post(world, sweep_of(preset="ablation-digits", seeds=1), labels=["night"])
    assert list(world.job(first).spec["variants"]) == [*SWEEPS["ablation-digits"]["variants"], "plain", "longer"]
    world.database.write(lambda s: cancel(s, first))
    second = world.database.write(lambda s: retry(s, world.store, first).id)
    job = world.job(second)
    assert (job.spec, job.labels, job.parent_id) == (world.job(first).spec, ["night"], first)
    assert [step.name for step in job.steps] == [step.name for step in world.job(first).steps]
    assert world.finish_job(second).state == "succeeded"


def test_a_checkpoint_is_named_by_its_bytes_and_refused_with_its_variant(world: World) -> None:
    shapes = expected_shapes(BackboneSpec(name="convnet", width=8, depth=2), 1, (8, 8)) or {}
    path = world.folder / "weights"
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    blob = read_checkpoint(world.store, path, "encoder.safetensors")
    artifact = world.database.write(lambda s: add_checkpoint(s, blob, "encoder.safetensors"))
    given = {"ssl": "given", "checkpoint": artifact.id, "backbone": {"name": "convnet", "width": 8, "depth": 2}}
    job_id = post(world, sweep_of(variants={"plain": {}, "given": {"teacher": given}}, seeds=1))
    assert world.step(job_id, "given/0/teacher").params["teacher"]["checkpoint"] == artifact.sha256
    assert world.job(job_id).spec["variants"]["given"]["teacher"]["checkpoint"] == artifact.id
    with pytest.raises(SpecError) as refused:
        post(world, sweep_of(variants={"plain": {}, "given": {"teacher": given | {"checkpoint": "art_none"}}}))
    (problem,) = refused.value.problems
    assert problem.loc == ("variants", "given", "teacher", "checkpoint")


def test_a_graph_of_a_thousand_steps_is_posted_read_and_cancelled(world: World) -> None:
    variants = {f"v{number}": {"method": {"iterations": number + 1}} for number in range(50)}
    spec = sweep_of(variants=variants, seeds=4, evaluate=MEASURE | {"seeds": 4})
    job_id = post(world, spec)
    job = world.job(job_id)
    assert len(job.steps) > 1000
    assert len(world.database.read(lambda s: dry_run(s, world.store, spec)).steps) == len(job.steps)
    world.run(job_id, job.steps[0].name)
    assert world.job(job_id).phase.startswith("waiting for a worker, before training the teacher")
    assert len(world.database.read(lambda s: views.events(s, views.job(s, job_id), limit=10))) > 2
    assert world.database.write(lambda s: cancel(s, job_id).state) == "cancelled"
