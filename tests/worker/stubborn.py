"""`python -m tests.worker.stubborn FILE`: a runner that hears no TERM, with a child that hears none either; FILE tells their ids."""

import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child:
        aside = Path(f"{sys.argv[1]}.part")
        aside.write_text(f"{os.getpid()} {child}")
        aside.rename(sys.argv[1])
    while True:
        time.sleep(60)
