"""After an upgrade: waiting steps that the engine before planned, and that this one would compute the same, are made this one's."""

from collections import defaultdict

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ddcore.plan import STEP_VERSION, engine_digest, step_key
from jobs.database import lock_graph
from jobs.models import Step, StepInput

_PERHAPS_EMPTY = ("experts", "rates")  # roles that some plans name without giving them a step; rows keep none of these


def adopt(session: Session) -> int:
    """Let this engine run every waiting step of another that has, by this one's plan too, the key it has; returns how many.

    A key names all that determines an output, so nothing is computed differently. The others wait for a worker of their own engine.
    """
    lock_graph(session)
    mine = engine_digest()
    foreign = select(Step).where(Step.state.in_(("blocked", "ready")), Step.engine != mine)
    steps = {step.id: step for step in session.scalars(foreign.execution_options(populate_existing=True))}
    inputs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    edges = select(StepInput.step_id, StepInput.role, Step.key).join(Step, Step.id == StepInput.needs_id)
    of_these = select(Step.id).where(Step.state.in_(("blocked", "ready")), Step.engine != mine)
    for step_id, role, key in session.execute(edges.where(StepInput.step_id.in_(of_these)).order_by(StepInput.position)):
        inputs[step_id][role].append(key)
    same = [step.id for step in steps.values() if step.kind in STEP_VERSION and _is_same(step, inputs[step.id])]
    if same:
        session.execute(update(Step), [{"id": step_id, "engine": mine} for step_id in same])
    return len(same)


def _is_same(step: Step, inputs: dict[str, list[str]]) -> bool:
    """Whether this engine gives the step the key it has. inputs: role -> keys."""
    guesses = [inputs, *({role: [], **inputs} for role in _PERHAPS_EMPTY)]
    return any(step.key == step_key(step.kind, step.params, guess) for guess in guesses)
