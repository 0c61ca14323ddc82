"""`potstill`: the command line. One line an error; status 1 for what failed, 2 for a wrong call, 130 for Ctrl-C."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from potstill import commands, listings, storage
from potstill.errors import PotstillError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what it puts in the background with SIGINT ignored
        signal.signal(number, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        status: int | None = arguments.run(arguments)
    except PotstillError as error:
        Console(stderr=True, highlight=False).print(f"[red]potstill:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        return 130
    return status or 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("potstill", description="Dataset distillation for self-supervised pre-training.")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *, remote: bool = True) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if remote:
            sub.add_argument("--url", help="where the API answers (default: POTSTILL_URL of the environment, or http://127.0.0.1:8000)")
        return sub

    up = command("up", commands.up, "run the whole service on this machine until Ctrl-C", remote=False)
    up.add_argument("--port", type=int, default=8000)
    up.add_argument(
        "--home", type=Path, default=Path(os.environ.get("POTSTILL_HOME") or "~/.potstill"), help="data and logs (default: %(default)s)"
    )
    up.add_argument("--workers", type=int, default=1, metavar="N", help="steps that run at once (default: 1)")
    show = command("demo", commands.run_demo, "distil a real data set, compare the result with baselines, and stop", remote=False)
    show.add_argument("--folder", type=Path, default=Path("potstill-demo"), help="where results go (default: %(default)s)")
    show.add_argument("--workers", type=int, default=1, metavar="N", help="steps that run at once (default: 1)")
    command("migrate", commands.migrate, "bring the database up to date", remote=False).add_argument("--home", type=Path)

    upload = command("upload", commands.upload, "upload a zip of images, in class folders or flat")
    upload.add_argument("file", type=Path)
    upload.add_argument("--name", help="default: the file's name without .zip")
    command("datasets", listings.datasets, "list data sets")
    command("presets", listings.presets, "list presets")
    _posting(command)

    status = command("status", commands.status, "show a job")
    status.add_argument("job")
    status.add_argument("--follow", action="store_true", help="stay until it ends")
    listing = command("jobs", listings.jobs, "list jobs, newest first")
    for name in ("kind", "state", "label", "owner"):
        listing.add_argument(f"--{name}")
    listing.add_argument("--limit", type=int, default=20)
    command("cancel", commands.cancel, "cancel a job").add_argument("job")
    change = command("change", commands.change, "give a job that was posted another priority or other labels")
    change.add_argument("job")
    _filing(change)
    command("pin", storage.pin, "keep all files of a job, however long nobody uses them").add_argument("job")
    command("unpin", storage.unpin, "no longer keep them longer than others").add_argument("job")
    gc = command("gc", storage.gc, "remove files that nobody needs any more from the store")
    gc.add_argument("--dry-run", action="store_true", help="only tell what would go")
    gc.add_argument("--unused-days", type=float, metavar="N", help="let go of what can be computed again and was not used for N days, too")
    command("verify", storage.verify, "have every file in the store read; status 1 if any is damaged or missing")
    download = command("download", commands.download, "download a synthetic set (syn_...) or an artifact (art_...)")
    download.add_argument("id")
    download.add_argument("--format", choices=("safetensors", "pt", "png", "parquet", "mtt"), default="safetensors")
    download.add_argument("--output", type=Path)
    report = command("report", commands.report, "show a report")
    report.add_argument("report")
    report.add_argument("--json", action="store_true")
    return parser


def _posting(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that post a job: each takes a body of its own, or that of another job."""
    clone = command("clone", commands.clone, "post a job again, whatever became of it; what it had finished is not done again")
    clone.add_argument("job")
    retry = command("retry", commands.retry, "post a job that failed or was cancelled again; what it had finished is not done again")
    retry.add_argument("job")
    retry.add_argument("--detach", action="store_true", help="post the job and return")
    distill = command("distill", commands.distill, "distil a data set")
    distill.add_argument("--preset")
    distill.add_argument("--dataset", help="id or name")
    evaluate = command("evaluate", commands.evaluate, "compare a synthetic set with baselines on labelled data")
    evaluate.add_argument("synthetic_set")
    evaluate.add_argument("--train", help="data set that probes are fitted on")
    evaluate.add_argument("--test", help="data set that they are scored on")
    evaluate.add_argument("--seeds", type=int)
    observe = command("observe", commands.observe, "train a teacher and see how it moved: figures and tables")
    observe.add_argument("--dataset", help="id or name")
    observe.add_argument("--runs", type=int, help="runs from one initialisation, to tell motion from noise")
    observe.add_argument("--figures", type=Path, metavar="FOLDER", help="where the pictures go (default: the job's id)")
    sweep = command("sweep", commands.sweep, "rank variants of a distillation over several teachers each")
    sweep.add_argument("spec", type=Path, nargs="?", metavar="FILE", help="a JSON file with the body to post")
    sweep.add_argument("--preset", help="a ready sweep, such as ablation-digits")
    sweep.add_argument("--seeds", type=int, help="distillations of each variant, every one with a teacher of its own")
    for sub in (distill, evaluate, observe):
        sub.add_argument("--spec", type=Path, help="a JSON file with the body to post")
    for sub in (distill, evaluate, observe, sweep):
        sub.add_argument(
            "--set", action="append", metavar="FIELD=VALUE", help="a field of the body, such as method.iterations=100; may be repeated"
        )
    for sub in (clone, distill, evaluate, observe, sweep):
        sub.add_argument("--detach", action="store_true", help="post the job and return")
        _filing(sub)
        _owner(sub)


def _filing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--priority", type=int, metavar="N", help="-100 to 100: among waiting steps, larger runs first")
    sub.add_argument("--label", action="append", metavar="WORD", help="a word to find the job by; may be repeated")


def _owner(sub: argparse.ArgumentParser) -> None:
    text = "a name; owners of equal priority take turns (default: POTSTILL_OWNER of the environment, or the login name)"
    sub.add_argument("--owner", metavar="NAME", help=text)
