"""Posting work: a distillation, an evaluation, an observation or a sweep, or only the plan of one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from starlette.responses import JSONResponse

from api.answers import job_body
from api.bodies import BESIDE, DistillBody, EvaluateBody, ObserveBody, SweepBody
from api.parameters import DryRunFlag, IdempotencyKey
from api.schemas import JobBody
from api.service import Running, Service
from ddcore.specs import DistillSpec, EvaluateSpec, ObserveSpec, SweepSpec
from jobs import create
from jobs.models import Job

router = APIRouter(tags=["work"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": create.DryRun, "description": "With dry_run: the plan; nothing was written"},
    202: {"headers": {"Location": {"description": "the job", "schema": {"type": "string"}}}, "description": "Accepted: the job"},
}
_DISTILL = {
    "smoke": {"summary": "seconds: proves the wiring", "value": {"preset": "smoke"}},
    "other settings": {
        "summary": "a preset with other settings",
        "value": {"preset": "smoke", "num_images": 10, "method": {"iterations": 20}, "labels": ["trial"], "seed": 1},
    },
    "baseline": {"summary": "a baseline: no images are learned", "value": {"preset": "smoke", "method": {"name": "k_means"}}},
}
_EVALUATE = {
    "quick": {
        "summary": "the digits, in seconds",
        "value": {
            "synthetic_set": "syn_id_of_yours",
            "downstream": [{"train": "digits-train", "test": "digits-test"}],
            "baselines": ["random", "none"],
            "seeds": 2,
            "label_fractions": [0.1],
            "label_draws": 1,
        },
    },
    "all": {
        "summary": "every baseline, five seeds",
        "value": {
            "synthetic_set": "syn_id_of_yours",
            "downstream": [{"train": "digits-train", "test": "digits-test"}],
            "label_fractions": [0.05, 0.5],
            "label_draws": 1,
        },
    },
}
_TEACHER = {
    "ssl": "dino",
    "backbone": {"name": "convnet", "width": 16, "depth": 2},
    "epochs": 20,
    "warmup_epochs": 2,
    "out_dim": 64,
    "augment": {"flip": False, "jitter": 0.0, "grayscale": 0.0},
}
_OBSERVE = {
    "quick": {"summary": "a small DINO on the digits, half a minute", "value": {"dataset": "digits-train", "teacher": _TEACHER}},
    "noise": {
        "summary": "three runs from one start, and experts beside them",
        "value": {"dataset": "digits-train", "teacher": _TEACHER, "runs": 3, "experts": 4, "student": {"depth": 2, "width": 8}},
    },
}
_SWEEP = {
    "quick": {
        "summary": "two settings, two teachers, seconds",
        "value": {
            "base": {"preset": "smoke"},
            "variants": {"plain": {}, "longer": {"method": {"iterations": 20}}},
            "seeds": 2,
            "evaluate": {
                "downstream": [{"train": "digits-train", "test": "digits-test"}],
                "baselines": ["random", "k_means"],
                "seeds": 1,
                "label_fractions": [0.05],
                "label_draws": 1,
            },
        },
    },
    "to choose settings": {
        "summary": "a ready sweep, scored on held-out training images",
        "value": {"preset": "ablation-digits", "seeds": 4, "evaluate": {"validation": 0.3}},
    },
}


@dataclass
class Submission:
    """What all ways of posting work share."""

    service: Running
    request: Request
    response: Response
    dry_run: DryRunFlag = False
    idempotency_key: IdempotencyKey = None

    def answer(
        self,
        make: Callable[..., Job],
        body: DistillBody | EvaluateBody | ObserveBody | SweepBody,
        spec: DistillSpec | EvaluateSpec | ObserveSpec | SweepSpec,
    ) -> Any:
        """The job that `make` makes of `spec`, or the plan of it."""
        service = self.service
        if self.dry_run:
            with service.read() as session:
                return JSONResponse(create.dry_run(session, service.store, spec).model_dump(mode="json"))
        with service.read() as session:
            found = create.look(session, service.store, spec)
        made = partial(
            make,
            store=service.store,
            spec=spec,
            labels=body.labels,
            priority=body.priority,
            owner=body.owner,
            idempotency_key=self.idempotency_key,
            max_attempts=service.settings.max_attempts,
            found=found,
        )
        return accepted(service, self.request, self.response, service.write(lambda session: made(session).id))


def accepted(service: Service, request: Request, response: Response, job_id: str) -> JobBody:
    """202, with the address of the new job."""
    request.state.job_id = job_id  # for the line in the log
    body = job_body(service, request, job_id)
    response.headers["Location"] = body.links["self"]
    return body


@router.post("/distill", status_code=202, response_model=JobBody, responses=_ANSWERS, summary="Distil a dataset")
def distill(submission: Annotated[Submission, Depends()], body: Annotated[DistillBody, Body(openapi_examples=_DISTILL)]) -> Any:
    spec = DistillSpec.model_validate(body.model_dump(exclude=BESIDE))
    return submission.answer(create.create_distill, body, spec)


@router.post("/evaluate", status_code=202, response_model=JobBody, responses=_ANSWERS, summary="Compare a synthetic set with baselines")
def evaluate(submission: Annotated[Submission, Depends()], body: Annotated[EvaluateBody, Body(openapi_examples=_EVALUATE)]) -> Any:
    spec = EvaluateSpec.model_validate(body.model_dump(exclude=BESIDE))
    return submission.answer(create.create_evaluate, body, spec)


@router.post("/observe", status_code=202, response_model=JobBody, responses=_ANSWERS, summary="See how networks move while they learn")
def observe(submission: Annotated[Submission, Depends()], body: Annotated[ObserveBody, Body(openapi_examples=_OBSERVE)]) -> Any:
    spec = ObserveSpec.model_validate(body.model_dump(exclude=BESIDE))
    return submission.answer(create.create_observe, body, spec)


@router.post(
    "/sweeps", status_code=202, response_model=JobBody, responses=_ANSWERS, summary="Rank variants of a distillation over teachers"
)
def sweep(submission: Annotated[Submission, Depends()], body: Annotated[SweepBody, Body(openapi_examples=_SWEEP)]) -> Any:
    spec = SweepSpec.model_validate(body.model_dump(exclude=BESIDE))
    return submission.answer(create.create_sweep, body, spec)
