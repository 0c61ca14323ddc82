"""`potstill demo`: one distillation of a real data set, from an empty folder to numbers beside honest baselines."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from potstill.client import Client
from potstill.progress import display, duration, stages
from potstill.stack import Stack, clear
from potstill.tables import comparisons, summary, table
from potstill.terminal import console, say

DISTILL: dict[str, Any] = {"preset": "demo"}
EVALUATE: dict[str, Any] = {
    "downstream": [{"train": "digits-train", "test": "digits-test"}],
    "seeds": 20,
    "label_fractions": [0.01, 0.05],
    "label_draws": 5,
}


def run(folder: Path, workers: int = 1) -> None:
    """Start a private stack in `folder`, distil, evaluate, and leave files, pictures and `summary.json` there."""
    began = time.monotonic()
    home = folder / "home"
    clear(home)
    say(f"[bold]potstill demo[/]: everything it makes goes to {folder}/")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(Stack(home, workers=workers, say=say))
        client = stack.enter_context(Client(service.url))
        took = {"start the service": time.monotonic() - began}
        say(f"The service answers at {service.url} (Redis, SQLite, API, one worker), ready in {duration(took['start the service'])}.")

        say(f"\n[bold]Distil[/] the digits that come with scikit-learn: POST /distill {json.dumps(DISTILL)}")
        distilled = _follow(service, client, client.distill(DISTILL))
        took |= _seconds(distilled)
        set_id = distilled["results"]["synthetic_set"]
        target = client.download_set(set_id, folder / "synthetic.safetensors")

        body = {"synthetic_set": set_id, **EVALUATE}
        say(f"\n[bold]Compare[/] it with baselines of its size and targets: POST /evaluate {json.dumps(body)}")
        evaluated = _follow(service, client, client.evaluate(body))
        took |= _seconds(evaluated)
        report = client.report(evaluated["results"]["report"])["report"]
        pictures = [p for job in (distilled, evaluated) for p in client.download_pictures(job["id"], folder / "figures")]
    seconds = time.monotonic() - began
    result = summary(report, seconds, str(target))
    (folder / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    _tell(report, took, seconds, folder, pictures)


def _follow(service: Stack, client: Client, job: dict[str, Any]) -> dict[str, Any]:
    with display(console) as shown:

        def update(now: dict[str, Any]) -> None:
            service.check()
            shown.update(now)

        return client.wait(job["id"], update)


def _seconds(job: dict[str, Any]) -> dict[str, float]:
    """Wall time of each stage that this job ran itself."""
    return {stage.name: stage.seconds for stage in stages(job) if stage.seconds is not None}


def _tell(report: dict[str, Any], took: dict[str, float], seconds: float, folder: Path, pictures: list[Path]) -> None:
    for comparison in comparisons(report):
        console.print()
        console.print(table(comparison))
    times = ", ".join(f"{name} {duration(spent)}" for name, spent in took.items() if spent >= 0.05)
    say(f"\n[bold]Time[/]      {duration(seconds)} in all: {times}")
    say(f"[bold]Files[/]     {folder}/synthetic.safetensors (the synthetic set), {folder}/summary.json")
    names = ", ".join(picture.name for picture in pictures)
    say(f"[bold]Pictures[/]  {folder}/figures/: {names}")
    say("[bold]Next[/]      make up, then open http://127.0.0.1:8000/docs, or distil images of your own in another terminal:")
    say("            .venv/bin/potstill upload my-images.zip")
    say("            .venv/bin/potstill distill --preset cpu-small --dataset my-images")
