"""Bytes that steps are said to leave, beside the arrays that they do leave."""

import json

import pytest

from ddcore.data.builtins import facts
from ddcore.networks.student_sizes import num_parameters
from ddcore.plan import plan_distill
from ddcore.specs import DistillSpec
from jobs.estimate import SMALL, feature_dim, step_bytes

DIGITS = facts("digits-train")


def bytes_of(**method):
    """Of each step of a small distillation by dino_tm: what is said to be left beside tables and pictures, and the spec."""
    body = {"preset": "smoke", "experts": {"num": 3, "per_shard": 2}, "teacher": {"epochs": 5}}
    spec = DistillSpec.model_validate(json.loads(json.dumps(body)) | {"method": {"name": "dino_tm", **method}})
    steps = plan_distill(spec, DIGITS)
    left = {step.name: step_bytes(step.kind, step.params, spec, DIGITS.num_images, DIGITS.image_shape) - SMALL for step in steps}
    return left, spec


@pytest.mark.parametrize("stages", [2, 5])
def test_stages_are_as_many_times_the_targets(stages):
    left, spec = bytes_of(stages=stages)
    assert left["targets"] == 1297 * feature_dim(spec.teacher.backbone, DIGITS.image_shape) * 4
    assert left["stages"] == stages * left["targets"]


@pytest.mark.parametrize("path", ["staged", "final", "teacher", "student"])
def test_every_path_is_snapshots_of_the_student_network_and_scorers_leave_two(path):
    left, spec = bytes_of(path=path, max_start_epoch=3, expert_epochs=2)
    one = 4 * num_parameters(spec.student, DIGITS.image_shape, feature_dim(spec.teacher.backbone, DIGITS.image_shape))
    assert [left["experts-0"], left["experts-1"]] == [2 * 6 * one, 1 * 6 * one]
    if path != "final":
        assert [left["scorers-0"], left["scorers-1"]] == [2 * 2 * one, 1 * 2 * one]
