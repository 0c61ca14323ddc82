"""`python -m tests.worker.other_engine`: a worker whose engine computes something else, as after an upgrade."""

from ddcore.plan import STEP_VERSION
from worker.__main__ import main

if __name__ == "__main__":
    STEP_VERSION["ranking"] += 1
    main()
