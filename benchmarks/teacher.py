"""A teacher's training step as the engine makes it against one in the default layout and precision. `python -m benchmarks.teacher`

Plain: the same objective, views and optimiser, the backbone's tensors in NCHW, no autocast (on CUDA, products in TF32), not compiled.
Against it, in turn in one process: channels-last; that with bfloat16 autocast (a spec's `amp` on CUDA, its `cpu_amp` on a CPU); and,
where asked for, the engine's default with torch.compile. The default is autocast on CUDA, and none on a CPU.

The last line is one JSON object; it describes the row that is the engine's default here, `rows` has all:

    backbone, width, batch, device, ssl              what was run
    dtype, channels_last, amp, compile               how; amp is autocast to bfloat16, on any device
    time_ratio, time_ratio_quartiles, n_pairs        over plain
    ms, baseline_ms                                  of a step, medians
    images_per_second, baseline_images_per_second    images of the data set, each of which is seen in two views
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from benchmarks.machine import choose_dtype, facts, prepare
from benchmarks.output import between, facts_line, finish, table
from benchmarks.pairs import add_options, clocked, interleave
from ddcore.data.images import Images
from ddcore.events import Reporter
from ddcore.networks.names import OWN
from ddcore.run import choose_device
from ddcore.specs import GivenTeacherSpec, TeacherSpec
from ddcore.ssl.train import Run
from ddcore.task import Task, generator
from ddcore.threads import cores

EPOCHS = 100_000  # so many that no step of a measurement is one that logs
ON_CUDA = 10  # steps in one measurement there: the host runs ahead of the device
Way = dict[str, bool]
PLAIN: Way = {"channels_last": False, "amp": False, "compile": False}


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    device = choose_device(options.device)
    options.dtype = choose_dtype(options.dtype, device)
    prepare(options.threads or cores())
    print(facts_line(facts(device)), flush=True)
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        rows = [_row(options, way, device, Path(folder)) for way in _ways(device, options.compile)]
    print(
        table(
            ("how", "batch", "device", "plain ms", "this way ms", "ratio [quartiles]", "n", "images/s", "plain"), [_cells(r) for r in rows]
        )
    )
    default = next(row for row in rows if _default(device).items() <= row.items())
    finish(default | facts(device) | {"rows": rows})


def _ways(device: torch.device, compiled: bool) -> list[Way]:
    """What is compared with the plain step."""
    ways = [_default(device) | {"amp": amp} for amp in (False, True)]
    return [*ways, _default(device) | {"compile": True}] if compiled else ways


def _default(device: torch.device) -> Way:
    """As a spec has it that says nothing of these."""
    return {"channels_last": True, "amp": device.type == "cuda", "compile": False}


def _row(options: argparse.Namespace, way: Way, device: torch.device, folder: Path) -> dict[str, Any]:
    times = ON_CUDA if device.type == "cuda" else 1
    plain, ours = (clocked(run_of(options, one, device, folder)._update, device, times) for one in (PLAIN, way))
    pairs = interleave(plain, ours, options.repeats, options.seconds)
    row: dict[str, Any] = {"backbone": options.backbone, "width": options.width, "batch": options.batch, "device": device.type}
    row |= {"dtype": options.dtype, "ssl": options.ssl} | way | pairs.report()
    row["images_per_second"], row["baseline_images_per_second"] = (
        round(options.batch * 1e3 / row[f"{side}ms"], 1) for side in ("", "baseline_")
    )
    return row


def run_of(options: argparse.Namespace, way: Way, device: torch.device, folder: Path) -> Run:
    """A fresh run, made that way."""
    backbone = {"name": options.backbone, "width": options.width}
    teacher = {"ssl": options.ssl, "backbone": backbone, "batch_size": options.batch, "epochs": EPOCHS}
    teacher |= {"amp": way["amp"], "cpu_amp": way["amp"], "compile": way["compile"]}
    spec: TeacherSpec = TypeAdapter(TeacherSpec).validate_python(teacher)
    assert not isinstance(spec, GivenTeacherSpec)
    pixels = torch.randint(256, (options.images, 3, options.size, options.size), generator=generator(0, "images"), dtype=torch.uint8)
    task = Task({"teacher": teacher, "seed": 0}, {}, folder, folder, Reporter(), device)
    run = Run(spec, Images(pixels, None, ()).to(device), task)
    if not way["channels_last"]:
        for module in run.objective.modules.values():
            in_default_layout(module)
    return run


def in_default_layout(module: nn.Module) -> None:
    """Parameters and images of `module` in NCHW, whatever layout they come in."""
    module.to(memory_format=torch.contiguous_format)
    module.register_forward_pre_hook(lambda _, given: tuple(one.contiguous() if isinstance(one, torch.Tensor) else one for one in given))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        " + ".join(name.replace("_", " ") for name in PLAIN if row[name]),
        *(str(row[name]) for name in ("batch", "device")),
        *(f"{row[name]:,.1f}" for name in ("baseline_ms", "ms")),
        between(row["time_ratio"], row["time_ratio_quartiles"]),
        str(row["n_pairs"]),
        *(f"{row[name]:,.0f}" for name in ("images_per_second", "baseline_images_per_second")),
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher", description="A teacher's training step, images per second.")
    parser.add_argument("--backbone", default="resnet18", help=f"{', '.join(OWN)}, or a model of timm (%(default)s)")
    parser.add_argument("--ssl", default="simclr", choices=("dino", "barlow_twins", "simclr"))
    for name, default, text in (
        ("width", 8, "channels of the backbone's first stage; 8 is that of cpu-small"),
        ("size", 32, "height and width of the images"),
        ("batch", 256, "images of a step"),
        ("images", 4096, "of the data set"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="K", help=f"{text} (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which takes a minute or more to begin with")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "tf32"), help="auto: tf32 on CUDA, float32 elsewhere")
    add_options(parser, "row", 20.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
