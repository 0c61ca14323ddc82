"""What waited while potstill was upgraded goes on, unless the new engine would compute something else."""

import pytest
from sqlalchemy import select, update

from ddcore import plan as planning
from ddcore.plan import engine_digest
from ddcore.specs import DistillSpec
from jobs.adoption import adopt
from jobs.create import create_distill
from jobs.models import Step
from tests.jobs.harness import World


def engines(world: World) -> dict[str, str]:
    return dict(world.database.read(lambda s: s.execute(select(Step.kind, Step.engine)).all()))


@pytest.mark.parametrize("method", [{}, {"method": {"name": "random"}}])
def test_a_new_engine_takes_over_what_it_would_compute_the_same(
    world: World, method: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DistillSpec.model_validate({"preset": "smoke", "num_images": 4} | method)
    job_id = world.database.write(lambda s: create_distill(s, world.store, spec).id)
    before = engine_digest()
    monkeypatch.setitem(planning.STEP_VERSION, "export", 99)
    kinds = engines(world)
    assert world.database.write(adopt) == len(world.job(job_id).steps) - 1
    assert engines(world) == {kind: before if kind == "export" else engine_digest() for kind in kinds}
    assert world.database.write(adopt) == 0


def test_steps_from_before_engines_were_noted_are_taken_over(world: World) -> None:
    job_id = world.database.write(lambda s: create_distill(s, world.store, DistillSpec(preset="smoke")).id)
    world.database.write(lambda s: s.execute(update(Step).values(engine="")))
    assert world.database.write(adopt) == len({step.id for step in world.job(job_id).steps})
    assert set(engines(world).values()) == {engine_digest()}
