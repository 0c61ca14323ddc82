"""A training step of an expert against the same step in plain PyTorch, and the reading of what it leaves. `python -m benchmarks.experts`

Ours: images on the device as uint8, the core's gradient, SGD on flat parameters. Plain: images as normalised floats on the device,
the ConvNet in NCHW, autograd, torch.optim.SGD. Same batches, momentum and weight decay, in turn in one process. Then `benchmarks.reads`.

The last line is one JSON object; it describes the last of --width, `rows` has all of them:

    width, depth, batch, device                what was run
    time_ratio, time_ratio_quartiles, n_pairs  ours over plain
    ms, baseline_ms                            of a step, medians
    steps_per_second, images_per_second        ours
    reads                                      rows of `benchmarks.reads`; `read_ms`: start and goal from the mapped file
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import DTYPES, choose_dtype, facts, prepare
from benchmarks.output import between, facts_line, finish, table
from benchmarks.pairs import add_options, clocked, interleave
from benchmarks.reads import reads, reads_table
from benchmarks.roofline import Sizes
from benchmarks.settings import flat_convnet, threads_of
from ddcore.data.images import Images, Normaliser, mean_std, normalise
from ddcore.experts.sgd import CudaLane, Expert, Lane, Regression
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import FlatNetwork
from ddcore.run import choose_device
from ddcore.specs import ExpertsSpec
from ddcore.task import generator

SEED = 0
ON_CUDA = 20  # steps in one measurement there: the host runs ahead of the device


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    device = choose_device(options.device)
    options.dtype = choose_dtype(options.dtype, device)
    rows = [_row(options, width, device) for width in options.width]
    print(facts_line(facts(device)), flush=True)
    print(table(("width", "batch", "device", "plain ms", "ours ms", "ratio [quartiles]", "n", "images/s"), [_cells(row) for row in rows]))
    found = reads(options.parameters or rows[-1]["parameters"], device, options.repeats, options.seconds)
    print(reads_table(found))
    finish(rows[-1] | {"read_ms": found[0]["ms"], "reads": found} | facts(device) | {"rows": rows})


def _row(options: argparse.Namespace, width: int, device: torch.device) -> dict[str, Any]:
    sizes = Sizes(options.batch, 3, options.size, options.size, options.dims, options.depth, width)
    prepare(options.threads or threads_of(sizes))
    spec = ExpertsSpec(batch_size=sizes.batch)
    data, targets = _data(options.images, sizes)
    network = flat_convnet(sizes, device, DTYPES[options.dtype].tensors)
    batches = [rows.to(device) for rows in torch.randperm(options.images, generator=generator(SEED, "order")).split(sizes.batch)]
    whole = [rows for rows in batches if len(rows) == sizes.batch]
    plain, ours = plain_step(network, spec, data, targets, device)[0], our_step(network, spec, data, targets, device)[0]
    times = ON_CUDA if device.type == "cuda" else 1
    pairs = interleave(_over(whole, plain, device, times), _over(whole, ours, device, times), options.repeats, options.seconds)
    row = {"width": width, "depth": sizes.depth, "batch": sizes.batch, "device": device.type, "dtype": options.dtype}
    row["threads"] = torch.get_num_threads()
    rate = 1e3 / pairs.report()["ms"]  # type: ignore[operator]
    done = {"steps_per_second": round(rate, 3), "images_per_second": round(rate * sizes.batch, 1)}
    return row | {"parameters": network.num_parameters} | pairs.report() | done


Step = Callable[[Tensor], None]


def our_step(network: FlatNetwork, spec: ExpertsSpec, data: Images, targets: Tensor, device: torch.device) -> tuple[Step, Tensor]:
    """The engine's step on the images of given rows, and the parameters that it moves."""
    core = core_of(network, device)
    regression = Regression.of(data, targets, Normaliser.of(*mean_std(data.images), device), core, None)
    expert = Expert.begin(network, spec, SEED, 0, device)
    lane = (CudaLane if device.type == "cuda" else Lane)(core, expert, spec, regression)
    lane.begin_epoch()
    return lane.step, expert.theta


def plain_step(
    network: FlatNetwork, spec: ExpertsSpec, data: Images, targets: Tensor, device: torch.device
) -> tuple[Step, list[torch.nn.Parameter]]:
    """The same as a textbook has it, from the same start."""
    module = network.module
    start = network.init(generator(SEED, "expert", 0)).to(device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(network.split(start)[name])
    images, targets = normalise(data.images, *mean_std(data.images)).to(device), targets.to(device)
    optimiser = torch.optim.SGD(module.parameters(), lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)

    def step(rows: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        functional.mse_loss(module(images[rows]), targets[rows]).backward()
        optimiser.step()

    return step, list(module.parameters())


def _over(batches: list[Tensor], step: Step, device: torch.device, times: int) -> Callable[[], float]:
    turn = itertools.cycle(batches)
    return clocked(lambda: step(next(turn)), device, times)


def _data(count: int, sizes: Sizes) -> tuple[Images, Tensor]:
    random = generator(SEED, "images")
    pixels = torch.randint(256, (count, sizes.channels, sizes.height, sizes.width), generator=random, dtype=torch.uint8)
    return Images(pixels, None, ()), torch.randn(count, sizes.dims, generator=random)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(str(row[name]) for name in ("width", "batch", "device")),
        *(f"{row[name]:,.1f}" for name in ("baseline_ms", "ms")),
        between(row["time_ratio"], row["time_ratio_quartiles"]),
        str(row["n_pairs"]),
        f"{row['images_per_second']:,.0f}",
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts", description="An expert's training step against plain PyTorch.")
    parser.add_argument("--width", type=int, nargs="+", default=[16, 128], metavar="K", help="channels; 16 is the student of cpu-small")
    for name, default, text in (
        ("depth", 3, "blocks"),
        ("size", 32, "height and width of the images"),
        ("dims", 512, "dimensions of the targets"),
        ("batch", 256, "images of a step"),
        ("images", 4096, "of the data set"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="K", help=f"{text} (%(default)s)")
    parser.add_argument("--parameters", type=int, metavar="P", help="of the snapshots that are read; the last student's when absent")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "tf32"), help="auto: tf32 on CUDA, float32 elsewhere")
    add_options(parser, "row", 20.0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
