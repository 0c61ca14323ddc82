"""The teacher step: a backbone is trained on unlabelled images by DINO, Barlow Twins or SimCLR, measured, and kept."""

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from ddcore.checkpoint import read_checkpoint, write_checkpoint
from ddcore.data.augment import random_views
from ddcore.data.images import Images, Normaliser, load_dataset, mean_std
from ddcore.errors import DdcoreError, Problem, SpecError, Stopped
from ddcore.events import Reporter
from ddcore.ledger import Ledger
from ddcore.networks.backbones import build_backbone, feature_dim
from ddcore.specs import BarlowTwinsSpec, DinoSpec, GivenTeacherSpec, SimCLRSpec, TeacherSpec
from ddcore.ssl.barlow_twins import barlow_twins
from ddcore.ssl.collapse import ADVICE, WORDS, Kind, collapse_of
from ddcore.ssl.dino import Dino
from ddcore.ssl.given import given_teacher
from ddcore.ssl.gradient_noise import gradient_noise
from ddcore.ssl.identity import refuse_broken
from ddcore.ssl.masked import draw_hidden
from ddcore.ssl.measure import MEASURED, extract_features, knn_accuracy, measure, refuse_collapsed
from ddcore.ssl.objective import Objective
from ddcore.ssl.simclr import simclr
from ddcore.ssl.teacher import Manifest, save_teacher
from ddcore.ssl.trajectory import Recorder, flat, snapshot_steps, steps_apart
from ddcore.task import Task, generator
from ddcore.transfer import send

Trained = DinoSpec | BarlowTwinsSpec | SimCLRSpec
LAYOUT = "teacher 1"  # of checkpoints
POINTS = 300  # of a curve
LOOKS = 5  # k-NN accuracies measured on the way, on a sample
LOOK_IMAGES = 2000
COMPILER = "inductor"  # torch.compile's own


def train_teacher(task: Task) -> dict[str, Any]:
    """Write teacher.safetensors, teacher.json, trajectory.safetensors and history.json.

    params: {"teacher": a `TeacherSpec`, "seed": int, "run": int, 0 when absent}; input: dataset. Runs of one seed begin from the same
    weights and see the images in other orders and views. Raises `DdcoreError` diverged or teacher_collapsed, and for given teachers
    bad_checkpoint or download_failed. For DINO the teacher kept is the moving average, the trajectory holds both.
    """
    spec: TeacherSpec = TypeAdapter(TeacherSpec).validate_python(task.params["teacher"])
    data = load_dataset(task.input("dataset")).to(task.device)
    if isinstance(spec, GivenTeacherSpec):
        return given_teacher(spec, data, task)
    run = Run(spec, data, task)
    run.train()
    return run.finish()


@dataclass
class Run:
    """One training run; `step` counts the updates made so far, and all randomness is a function of it and the seed."""

    spec: Trained
    data: Images
    task: Task
    step: int = 0
    history: dict[str, list[list[float]]] = field(default_factory=dict)
    order: torch.Tensor | None = None  # of the images in this epoch

    def __post_init__(self) -> None:
        spec, count, device = self.spec, len(self.data), self.task.device
        self.seed, run = int(self.task.params["seed"]), int(self.task.params.get("run", 0))
        self.stream: tuple[str | int, ...] = ("run", run) if run else ()  # of orders and views
        self.batch_size = min(spec.batch_size, count)
        self.epoch_steps = count // self.batch_size
        self.total = spec.epochs * self.epoch_steps
        self.mean, self.std = mean_std(self.data.images, self.task.reporter.pulse)
        self.normaliser = Normaliser.of(self.mean, self.std, device)
        self.objective = self.build()
        groups = parameter_groups(self.objective.learning(), spec.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=spec.lr, fused=device.type == "cuda")  # a few launches instead of hundreds
        self.amp = torch.autocast(device.type, torch.bfloat16, enabled=spec.amp if device.type == "cuda" else spec.cpu_amp)
        every = spec.snapshot_every
        self.snapshots = snapshot_steps(self.total, spec.snapshots) if every is None else steps_apart(self.total, every * self.epoch_steps)
        self.recorder = Recorder(self.task.work, self.snapshots, spec.storage)
        self.rate = 0.0

    def build(self) -> Objective:
        """What learns, as it is before the first step."""
        return build_objective(self.spec, self.data.shape, self.seed, self.task.device)

    def train(self) -> None:
        """Run to the last step, from the last checkpoint if there is one; leaves a checkpoint behind when stopped."""
        self._resume()
        if self.step == 0:
            self._snapshot()
        began, first = time.perf_counter(), self.step
        try:
            while True:
                self.task.reporter.progress(self.step, self.total, "steps", f"{self.rate:,.0f} images/s")
                began += self._compare_gradients()
                if self._at(LOOKS) or self.step == self.total:
                    self._look()
                if self.step == self.total:
                    break
                self._update()
                self.rate = (self.step - first) * self.batch_size / (time.perf_counter() - began)
                if self.step in self.snapshots:
                    self._snapshot()
                if self.task.reporter.checkpoint_due():
                    self._checkpoint()
        except Stopped:
            self._checkpoint()
            raise
        self._checkpoint()  # measuring may be stopped too

    def _update(self) -> None:
        epoch, place = divmod(self.step, self.epoch_steps)
        if place == 0 or self.order is None:
            draw = generator(self.seed, *self.stream, "order", epoch)
            self.order = send(torch.randperm(len(self.data), generator=draw), self.task.device)
        rows = self.order[place * self.batch_size : (place + 1) * self.batch_size]
        for module in self.objective.modules.values():
            module.train()
        views, hidden = self._views(self.data.images.index_select(0, rows))
        with self.amp:
            loss, figures = self.objective.loss(views, self.step / self.epoch_steps, hidden)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.objective.before_update(epoch)
        learned = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.objective.max_norm is not None:
            nn.utils.clip_grad_norm_(learned, self.objective.max_norm)
        lr = learning_rate(self.step, self.total, self.spec.lr, self.spec.warmup_epochs * self.epoch_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        logged = self._at(POINTS) or self.step == 0
        settings = self.objective.after_update(self.step, self.total, logged)
        if logged:
            self._log({"loss": loss.detach(), **figures, **settings, "lr": lr})
        self.step += 1

    def _at(self, points: int) -> bool:
        return self.step % max(1, self.total // points) == 0 and self.step > 0

    def _views(self, batch: torch.Tensor, own: torch.Generator | None = None) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Two global views at the images' size, then local ones; and the patches hidden in the former. own: not the step's draws."""
        draw, spec, hidden = own or generator(self.seed, *self.stream, "views", self.step), self.spec, None
        views = [random_views(batch, spec.augment, draw) for _ in range(2)]
        if isinstance(spec, DinoSpec):
            height, width = batch.shape[2:]
            small = spec.local_view(height, width)
            views += [random_views(batch, spec.augment, draw, spec.local_crop_scale, small) for _ in range(spec.local_crops)]
            hidden = draw_hidden(spec.mask_ratio, len(batch), height, width, draw) if spec.masked_patches else None
        return [self.normaliser(view).to(memory_format=torch.channels_last) for view in views], hidden

    def _compare_gradients(self) -> float:
        """At LOOKS evenly spaced steps and at step 0: how far gradients of batches drawn for this alone scatter. Returns the seconds."""
        began = time.perf_counter()
        batches = self.spec.gradient_batches
        here = {round(look * self.total / LOOKS) for look in range(LOOKS + 1)}
        if not batches or self.step not in here or self._has("gradient_noise"):
            return 0.0
        draw = generator(self.seed, *self.stream, "gradient noise", self.step)

        def batch(number: int) -> tuple[list[torch.Tensor], torch.Tensor | None]:
            self.task.reporter.progress(self.step, self.total, "steps", f"gradient {number + 1} of {batches}")
            rows = torch.randperm(len(self.data), generator=draw)[: self.batch_size]
            return self._views(self.data.images.index_select(0, send(rows, self.task.device)), draw)

        ratio = gradient_noise(self.objective, batch, batches, self.step / self.epoch_steps, self.amp)
        if ratio is None:
            self.task.reporter.note(f"step {self.step}: the gradients of {batches} batches share no direction; take more gradient_batches")
        else:
            self._point("gradient_noise", ratio)
        return time.perf_counter() - began

    def _log(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            self._point(name, float(value))
        for name, what in {"loss": "loss is", "ema_residual": "parameters are"}.items():
            if name in figures and not math.isfinite(self.history[name][-1][1]):
                detail = f"the teacher's {what} not finite at step {self.step} of {self.total}"
                raise DdcoreError("diverged", detail, "lower teacher.lr or raise teacher.warmup_epochs")
        if "ema_residual" in figures:
            refuse_broken(self.history["ema_residual"][-1][1], self.step)

    def _point(self, name: str, value: float) -> None:
        self.history.setdefault(name, []).append([self.step, value])
        self.task.reporter.metric(name, self.step, value)

    def _has(self, curve: str) -> bool:
        """Whether a curve has its point of this step: a run that was stopped goes on from there."""
        return any(step == self.step for step, _ in self.history.get(curve, []))

    def _look(self) -> None:
        """A quick k-NN accuracy on a sample of the images, for the curve; below the manifest's, which has all of them to look among."""
        if self.data.labels is None or self._has("knn"):
            return
        quiet = Reporter(should_stop=self.task.reporter.should_stop)
        rows = torch.linspace(0, len(self.data) - 1, min(LOOK_IMAGES, len(self.data))).round().long().to(self.task.device)
        features = extract_features(self.objective.result, self.data.images[rows], self.mean, self.std, quiet)
        self._point("knn", knn_accuracy(features, self.data.labels[rows], pulse=quiet.pulse))

    def _snapshot(self) -> None:
        own, kept = self.objective.backbone, self.objective.result
        self.recorder.keep(self.step, flat(own), None if kept is own else flat(kept))

    def _checkpoint(self) -> None:
        tensors = dict(self.objective.buffers)
        for name, module in self.objective.modules.items():
            tensors |= {f"{name}:{key}": tensor for key, tensor in module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer:{number}:{key}": tensor for key, tensor in state.items()}
        write_checkpoint(self.task.work, LAYOUT, tensors, {"step": self.step, "history": self.history})

    def _resume(self) -> None:
        found = read_checkpoint(self.task.work, LAYOUT, self.task.reporter.note)
        if found is None:
            return
        tensors, facts = found
        if not self.recorder.holds(facts["step"]):
            self.task.reporter.note("snapshots of an earlier attempt cannot be read: the run begins anew")
            return
        for name, buffer in self.objective.buffers.items():
            buffer.copy_(tensors[name])
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, key = name.partition(":")
            parts.setdefault(part, {})[key] = tensor
        for name, module in self.objective.modules.items():
            module.load_state_dict(parts[name])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in parts.get("optimizer", {}).items():
            number, _, key = name.partition(":")
            state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step, self.history = int(facts["step"]), facts["history"]
        self.task.reporter.again(self.history)
        self.task.reporter.note(f"resumed at step {self.step} of {self.total}")

    def collapsed(self) -> Kind | None:
        """How DINO's outputs had collapsed by the last logged step, if they had."""
        if not isinstance(self.spec, DinoSpec):
            return None
        return collapse_of(self.history["entropy"][-1][1], self.history["kl"][-1][1], self.spec.out_dim)

    def finish(self) -> dict[str, Any]:
        """Measure the teacher, refuse a collapsed one, write the files."""
        module, ledger = self.objective.result, Ledger(self.task.work / "features", MEASURED, self.task.reporter)
        accuracy, rank, width = measure(module, self.data, self.mean, self.std, self.task.reporter, ledger)
        (self.task.out / "history.json").write_text(json.dumps(self.history) + "\n")
        collapsed = self.collapsed()
        refuse_collapsed(accuracy, rank, self.spec.min_knn_accuracy, collapsed)
        if collapsed:
            self.task.reporter.note(f"{WORDS[collapsed]}, so the student learnt little more; {ADVICE[collapsed]}")
        error = self.recorder.gather(self.task.out, self.task.reporter.pulse)
        last = self.history["loss"][-max(1, len(self.history["loss"]) // 10) :]
        channels, height, image_width = self.data.shape
        manifest = Manifest(
            backbone=self.spec.backbone.model_dump(),
            in_channels=channels,
            image_size=(height, image_width),
            mean=self.mean,
            std=self.std,
            feature_dim=width,
            ssl=self.spec.ssl,
            knn_accuracy=accuracy,
            feature_rank=rank,
            loss=sum(value for _, value in last) / len(last),
            images_per_second=self.rate or None,
            min_knn_accuracy=self.spec.min_knn_accuracy,
        )
        save_teacher(self.task.out, module, manifest)
        shown = ("ssl", "knn_accuracy", "feature_rank", "feature_dim", "loss", "images_per_second")
        summary = {name: getattr(manifest, name) for name in shown}
        if error:
            summary["storage_error"] = error
        if residuals := self.history.get("ema_residual"):
            summary["ema_residual"] = max(value for _, value in residuals)
        return summary


def build_objective(spec: Trained, shape: tuple[int, int, int], seed: int, device: torch.device) -> Objective:
    """Backbone, heads and loss on `device`, initialised from `seed`; PyTorch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, "teacher").initial_seed())
        small = spec.local_view(*shape[1:]) if isinstance(spec, DinoSpec) else shape[1:]
        backbone = build_backbone(spec.backbone, shape[0], shape[1:], any_size=small != shape[1:])
        width = feature_dim(backbone, shape[0], shape[1:])
        if small != shape[1:] and feature_dim(backbone, shape[0], small) != width:
            given = f"{small[0]}x{small[1]} beside {shape[1]}x{shape[2]} pixels"
            said = f"the features of {spec.backbone.name} are of other lengths for local views"
            raise SpecError(
                [Problem(("teacher", "local_crop_size"), said, given, "leave it out, and local crops are resized to full size")]
            )
        return objective_around(spec, backbone, width, seed, device)


def objective_around(spec: Trained, backbone: nn.Module, width: int, seed: int, device: torch.device) -> Objective:
    """Heads and loss of `spec` on a backbone whose features are `width` long; the heads draw from PyTorch's global generator.

    Channels last: on a CPU, too, a ResNet's step takes a quarter less time so (1.16 to 1.32 the other way), a ConvNet's the same.
    """
    objective: Objective
    if isinstance(spec, DinoSpec):
        objective = Dino(spec, backbone, width, generator(seed, "direction"))
    elif isinstance(spec, BarlowTwinsSpec):
        objective = barlow_twins(spec, backbone, width)
    else:
        objective = simclr(spec, backbone, width)
    for module in objective.modules.values():
        module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if spec.compile and module in (objective.backbone, objective.result):
            module.compile(backend=COMPILER)
    objective.buffers = {name: buffer.to(device) for name, buffer in objective.buffers.items()}
    return objective


def parameter_groups(modules: list[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices and kernels decay; biases and norms (one dimension) do not."""
    parameters = [p for module in modules for p in module.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps (at most half of the run), then a cosine to zero at step `total`."""
    warmup = min(warmup, total // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
