"""Every long step, stopped and killed at chance moments again and again, leaves the same files and one unbroken series of metrics."""

import json
import random
import shutil
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ddcore import events
from ddcore.checks import DatasetFacts
from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.methods import clusters, high_loss
from ddcore.observatory import landscape, motion, pca
from ddcore.plan import Plan, plan_distill, plan_evaluate, plan_observe
from ddcore.run import run_plan, run_step
from ddcore.specs import DistillSpec, EvaluateSpec, KMeansSpec, ObserveSpec
from ddcore.ssl import measure
from ddcore.task import Resources

CPU = torch.device("cpu")
IMAGES = 32
BACKBONE = {"name": "convnet", "width": 4, "depth": 1}
COMMON = {"backbone": BACKBONE, "batch_size": 8, "warmup_epochs": 0, "epochs": 3, "snapshots": 4, "gradient_batches": 2}
PLAIN = {"flip": False, "jitter": 0.0, "grayscale": 0.0}
DINO = COMMON | {"ssl": "dino", "out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "storage": "gap", "augment": PLAIN, "local_crops": 1}
BARLOW = COMMON | {"ssl": "barlow_twins", "projector_dim": 8, "augment": PLAIN}
SIMCLR = COMMON | {"ssl": "simclr", "projector_dim": 8, "augment": PLAIN}
MATCHED = {
    "iterations": 6,
    "inner_steps": 4,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "batch_size": 4,
    "lr_images": 0.1,
    "lr_targets": 0.1,
}
IMPROVED = MATCHED | {"functional": 0.5, "functional_images": 8, "gap": 0.1, "looks": 2, "own_starts": 0.5, "optimizer": "adam"}
STUDENT = {"width": 4, "depth": 1}
MOST_LOOKS = 64  # at whether to stop, between two offers of a checkpoint
MOST_OF_A_PROBE = 800  # where they are evaluations of a small linear fit


class Killed(BaseException):
    """Nothing that a stage would catch: the process is gone."""


def distill(method, teacher, **experts):
    sgd = {"num": 2, "per_shard": 2, "batch_size": 8, "ema": 0.9} | experts
    teacher = teacher | {"min_knn_accuracy": 0.0}
    return DistillSpec(dataset="it", num_images=8, teacher=teacher, student=STUDENT, experts=sgd, method=MATCHED | method)


def plans(facts):
    """Between them they have every long step in all its kinds."""
    staged = distill(IMPROVED | {"name": "dino_tm", "path": "staged", "stages": 2}, DINO)
    own = distill(IMPROVED | {"name": "dino_tm", "path": "student", "initial_rate": 0.1, "gap": 0.0, "init": "random"}, SIMCLR)
    plain = distill({"name": "mkdt", "init": "random"}, BARLOW, ema=None)
    chosen = plain.model_copy(update={"method": KMeansSpec()})
    measured = EvaluateSpec(
        synthetic_set="s",
        downstream=[{"train": "it", "test": "it"}],
        seeds=1,
        baselines=("high_loss", "none"),
        pretrain={"batch_size": 4, "lr_grid": (0.5, 1.0)},
        label_fractions=(0.5,),
        label_draws=1,
        probe="logistic",
    )
    yield "staged", plan_evaluate(measured, staged, facts, {"it": facts})
    yield "plain", plan_distill(plain, facts)
    yield "own", plan_distill(own, facts)
    yield "chosen", plan_distill(chosen, facts)
    teacher = DINO | {"min_knn_accuracy": 0.0}
    yield "seen", plan_observe(ObserveSpec(dataset="it", teacher=teacher, runs=2, experts=2, epochs=2, student=STUDENT), facts)


@dataclass
class Heard:
    """What a run of a step said and was asked. curves: name -> x -> value, as the service keeps them."""

    curves: dict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(dict))
    looks: int = 0
    longest: int = 0  # looks between two offers

    def record(self, said):
        """As `jobs.records`: an earlier attempt's points at or after the first of this one's are replaced."""
        new = defaultdict(dict)
        for event in said:
            if event["type"] == "metric":
                new[event["name"]][event["x"]] = event["value"]
        for name, points in new.items():
            self.curves[name] = {x: value for x, value in self.curves[name].items() if x < min(points)} | points


@pytest.fixture(scope="module")
def small_parts():
    """So that few images, and few looks at them, are many parts. Pictures stay blank: the numbers in them lie beside them as JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_BATCH", 4)
        patch.setattr(high_loss, "CHUNK", 4)
        patch.setattr(clusters, "BLOCK", 4)
        patch.setattr(clusters, "LEAST_BLOCKS", 1)
        patch.setattr(clusters, "AT_ONCE", 0)
        patch.setattr(landscape, "SIDE", 3)
        patch.setattr(landscape, "POINTS", 4)
        patch.setattr(pca, "CHUNK_BYTES", 1 << 14)
        patch.setattr(motion, "CHUNK_BYTES", 1 << 14)
        patch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch())
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory, small_parts):
    """All plans, run to their ends undisturbed: the steps by plan and name, the folders, and what each said."""
    root = tmp_path_factory.mktemp("done")
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / "images" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    facts = DatasetFacts("it", {"folder": str(root / "images")}, IMAGES, (1, 8, 8), (IMAGES // 2, IMAGES // 2))
    steps, folders, said = {}, {}, {}
    for name, plan in plans(facts):

        def reporter_of(step):
            heard = said[step.key] = []
            return Reporter(sink=heard.append)

        plan = Plan({step.name: step for step in plan if step.kind not in ("export", "report")})
        found = run_plan(plan, root, CPU, Resources(), reporter_of, lambda *_: None)
        for step in plan:
            steps[f"{name} {step.name}"] = step
            folders[f"{name} {step.name}"] = found
    return steps, folders, said


LONG = [
    *(
        f"staged {name}"
        for name in ("teacher", "targets", "stages", "experts-0", "scorers-0", "high_loss", "distill", "tune", "evaluate-0-0")
    ),
    *(f"plain {name}" for name in ("teacher", "experts-0", "distill", "figures")),
    *(f"own {name}" for name in ("teacher", "experts-0", "distill")),
    "chosen distill",
    "seen observe",
]


def attempt(step, inputs, place, heard, calls=None, end=Stopped):
    """One attempt, which ends at the look number `calls`, if it gets that far; whether it reached its end."""
    said, since = [], 0

    def look():
        nonlocal since
        heard.looks += 1
        since += 1
        heard.longest = max(heard.longest, since)
        if calls is not None and heard.looks >= calls:
            if end is Killed:
                raise Killed
            return True
        return False

    class Asked(Reporter):
        def checkpoint_due(self):
            nonlocal since
            since = 0
            return super().checkpoint_due()

    heard.looks = 0
    reporter = Asked(sink=said.append, should_stop=look, checkpoint_seconds=0.0)
    shutil.rmtree(place / "out", ignore_errors=True)
    try:
        run_step(step.kind, step.params, inputs, place / "out", place / "work", reporter, CPU, Resources())
    except end:
        return False
    finally:
        heard.record(said)
    return True


@pytest.mark.parametrize("name", LONG)
def test_a_step_that_is_stopped_and_killed_again_and_again_ends_as_if_undisturbed(done, tmp_path, monkeypatch, name):
    steps, folders, said = done
    step, found = steps[name], folders[name]
    inputs = {role: [found[one] for one in names] for role, names in step.inputs.items()}
    monkeypatch.setattr(events, "PULSE", 0.0)  # every unit of work inside a long one is a moment to stop at
    whole = Heard()
    assert attempt(step, inputs, tmp_path / "whole", whole)
    assert whole.longest <= (MOST_OF_A_PROBE if step.kind in ("evaluate", "tune") else MOST_LOOKS)
    expected = Heard()
    expected.record(said[step.key])
    assert whole.curves == expected.curves
    chance, heard, ends = random.Random(name), Heard(), 0
    for end in (Stopped, Killed, Killed, Stopped):
        ends += not attempt(step, inputs, tmp_path, heard, chance.randint(1, max(1, whole.looks // 2)), end)
    assert ends >= 2, "it was disturbed"
    assert attempt(step, inputs, tmp_path, heard)
    assert heard.looks < whole.looks, "the last attempt did not begin anew"
    assert heard.curves == expected.curves
    own = found[step.name]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in own.iterdir())
    for path in own.iterdir():
        again = (tmp_path / "out" / path.name).read_bytes()
        if path.suffix == ".json":
            assert timeless(again) == timeless(path.read_bytes()), path.name
        else:
            assert again == path.read_bytes(), path.name


def timeless(content):
    """A JSON file without what depends on the clock."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(one) for key, one in value.items() if key not in ("seconds", "images_per_second")}
        return [strip(one) for one in value] if isinstance(value, list) else value

    return strip(json.loads(content))
