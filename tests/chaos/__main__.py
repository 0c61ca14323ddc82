"""`python -m tests.chaos`: disturb real installations at random moments, and see that nothing is lost, doubled or half-written.

Every round is an installation of its own (database, Redis, API, maintenance loop, two workers) with one distillation and one fault.
The synthetic set of each must have the bits of the one that nothing disturbed.
"""

import argparse
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.faults import BOTH, FAULTS
from tests.chaos.rounds import Lane, Outcome, Round
from tests.chaos.stand import STOP, Interrupted

SQLITE_SHARE = 1 / 3


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="potstill-chaos-"))
    folder.chmod(0o755)
    shim = _build_shim(folder)
    lanes = [Lane(folder / f"lane-{n}", shim, options.keep) for n in range(options.lanes)]
    outcomes: list[Outcome] = []
    try:
        _play(lanes, plan(options.rounds, options.seed, options.fault, options.database), outcomes)
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
        return 130
    finally:
        if not any(outcome.logs for outcome in outcomes):
            shutil.rmtree(folder, ignore_errors=True)
    failed = sum(bool(outcome.wrong) for outcome in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed or len(outcomes) < options.rounds else 0


def plan(rounds: int, seed: int, faults: Sequence[str] = (), databases: Sequence[str] = ()) -> list[Round]:
    """What to play: every fault as often as any other, give or take one, in a random order, each on a database that it applies to."""
    chance, names = random.Random(seed), list(faults or FAULTS)
    deck: list[str] = []
    while len(deck) < rounds:
        chance.shuffle(names)
        deck += names[: rounds - len(deck)]
    chance.shuffle(deck)
    planned = []
    for number, fault in enumerate(deck, 1):
        fitting = [name for name in databases or BOTH if name in FAULTS[fault].databases]
        if not fitting:
            raise SystemExit(f"fault {fault} applies only to {', '.join(FAULTS[fault].databases)}")
        database = "sqlite" if fitting == ["sqlite"] or ("sqlite" in fitting and chance.random() < SQLITE_SHARE) else fitting[0]
        planned.append(Round(number, f"{seed}/{number}", database, fault))
    return planned


def _play(lanes: list[Lane], rounds: list[Round], outcomes: list[Outcome]) -> None:
    """All rounds, side by side in the lanes. Raises `KeyboardInterrupt` when every lane has tidied up."""
    waiting: queue.SimpleQueue[Round] = queue.SimpleQueue()
    for one in rounds:
        waiting.put(one)
    try:
        undisturbed = lanes[0].play(Round(0, "undisturbed", rounds[0].database, "none"))
        _show(undisturbed)
        if undisturbed.wrong:
            outcomes.append(undisturbed)
            return
        for lane in lanes:
            lane.undisturbed = undisturbed.facts
        with ThreadPoolExecutor(len(lanes)) as pool:
            done = [pool.submit(_play_lane, lane, waiting, outcomes) for lane in lanes]
            try:
                for one in done:
                    one.result()
            except BaseException:
                STOP.set()
                raise
    finally:
        for lane in lanes:
            lane.close()


def _play_lane(lane: Lane, waiting: "queue.SimpleQueue[Round]", outcomes: list[Outcome]) -> None:
    while not STOP.is_set():
        try:
            outcome = lane.play(waiting.get_nowait())
        except (queue.Empty, Interrupted):
            return
        outcomes.append(outcome)
        _show(outcome)


def _show(outcome: Outcome) -> None:
    round, facts = outcome.round, outcome.facts
    attempts = f"{facts.attempts} attempts of {len(facts.steps)} steps, {facts.failures} counted"
    said = "; ".join([attempts, *outcome.said])
    verdict = "FAILED" if outcome.wrong else "passed"
    print(
        f"{round.number:4} {round.seed:<12} {round.database:<11} {round.fault:<21} {outcome.seconds:6.1f} s  {verdict}  {said}", flush=True
    )
    for reason in outcome.wrong:
        print(f"       {reason}")
    if outcome.logs is not None:
        print(f"       logs: {outcome.logs}", flush=True)


def _build_shim(folder: Path) -> Path:
    """What makes a folder full, compiled: it needs no privilege, only the compiler that the tests need as well."""
    library = folder / "full_disk.so"
    command = [
        os.environ.get("CXX", "g++"),
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(library),
        str(Path(__file__).with_name("full_disk.cpp")),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of faults, databases and moments (%(default)s)")
    parser.add_argument("--fault", nargs="+", default=(), choices=FAULTS, metavar="NAME", help=f"only these of: {', '.join(FAULTS)}")
    parser.add_argument("--database", nargs=1, default=(), choices=BOTH, help="only this one")
    parser.add_argument("--lanes", type=int, default=2, help="rounds side by side (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the logs of rounds that passed, too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
