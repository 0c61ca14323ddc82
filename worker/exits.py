"""What the exit code of a runner says to its supervisor, and what an ended attempt means for its step.

| how the attempt ended | recorded as | tried again | counts as a failure |
|---|---|---|---|
| DONE | succeeded | no | no |
| FAILED: the user's (the spec, the data set, a checkpoint, a collapse, a divergence, a missing input) | its code | no | yes, the last |
| FAILED: `out_of_memory` | its code | once, keeping as little in memory as can be | yes |
| FAILED: the infrastructure's (the store, a download, an unexpected error) | its code | yes | yes |
| FULL: the disk that it worked on was full | `internal` | yes; by this worker after a pause | not the first ten times |
| no runner could be started (torch cannot be imported, no memory for it) | `worker_lost`, `internal` | likewise | not the first ten times |
| STOPPED, or killed after being asked to stop (drained, cancelled) | handed back | yes, or cancelled | no |
| LOST: another attempt holds the step | nothing | by whoever holds it | no |
| a signal or another code, with nobody having asked | `worker_lost`, `internal` | yes; after a loss keeping little in memory | yes |
| no sign of life (hung, and killed) | `worker_lost` | likewise | yes |
| its lease ran out (the machine or its worker died) | `worker_lost` | yes; after two keeping little | not the first ten times |

A step that has failed `max_attempts` times has failed for good; what never counts may happen any number of times.

FULL, no runner and a lease that ran out are failures of the machine, and a step may meet many: machines are taken away and restarted,
and others fill their disks. But it may also be the step that takes more memory or disk than any machine has, and with it the worker, and
whatever else runs there. Nobody can tell the one from the other, so `jobs.claims.SPARED` of them, together, do not count, and every
further one does. A step that breaks machines so fails after that many and `max_attempts` more.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Codes that a runner chooses; any other code, and any signal (negative, as in `subprocess`), is a crash."""

    DONE = 0  # the step is recorded as succeeded
    FAILED = 10  # the failure is recorded, with its reason
    STOPPED = 11  # asked to stop: the last checkpoint stands, nothing is recorded
    LOST = 12  # another attempt, or nobody, holds the step: whatever this one did is void
    FULL = 13  # the failure is recorded: this machine's disk is full, and would be for the next step too
