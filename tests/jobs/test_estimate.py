"""Bytes that steps are said to leave, beside the arrays that they do leave."""

import json

import pytest
import torch

from ddcore.data.builtins import facts
from ddcore.networks.student_sizes import num_parameters
from ddcore.plan import plan_distill
from ddcore.specs import BackboneSpec, DistillSpec
from ddcore.ssl.trajectory import Recorder
from jobs.estimate import SMALL, backbone_parameters, feature_dim, step_bytes

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


@pytest.mark.parametrize("ssl", ["dino", "simclr"])
@pytest.mark.parametrize("storage", ["float32", "gap"])
@pytest.mark.parametrize("name", ["convnet", "vit_tiny_patch4"])
def test_a_teacher_leaves_itself_and_its_snapshots(tmp_path, ssl, storage, name):
    """The parts of the run's file, as they are written: `ddcore.ssl.trajectory`."""
    teacher = {"ssl": ssl, "backbone": {"name": name}, "epochs": 3, "snapshot_every": 0.5, "storage": storage}
    spec = DistillSpec.model_validate({"teacher": teacher})
    assert spec.teacher.num_snapshots == 7
    parameters, pair = 1000, ssl == "dino"
    recorder = Recorder(tmp_path, list(range(7)), storage)
    for step in range(7):
        vector = torch.randn(parameters)
        recorder.keep(step, vector, vector / 2 if pair else None)
    recorder.gather(tmp_path)
    written = (tmp_path / "trajectory.safetensors").stat().st_size / parameters
    own = backbone_parameters(spec.teacher.backbone, DIGITS.image_shape)
    said = (step_bytes("teacher", {}, spec, DIGITS.num_images, DIGITS.image_shape) - SMALL) / own
    assert said - 4 == pytest.approx(written, abs=0.6)  # headers and steps


def test_features_are_as_long_as_the_encoders_say():
    for backbone, width in ((BackboneSpec(name="vit_tiny_patch4"), 192), (BackboneSpec(width=8), 64), (BackboneSpec(name="convnet"), 64)):
        assert feature_dim(backbone, DIGITS.image_shape) == width
