"""What the exit code of a runner says to its supervisor, and what an ended attempt means for its step.

| how the attempt ended | recorded as | tried again | counts as a failure |
|---|---|---|---|
| DONE | succeeded | no | no |
| FAILED: the user's (the spec, the data set, a checkpoint, a collapse, a divergence, a missing input) | its code | no | yes, the last |
| FAILED: `out_of_memory` | its code | once, keeping as little in memory as can be | yes |
| FAILED: the infrastructure's (the disk, the store, a download, an unexpected error) | its code | yes | yes |
| STOPPED, or killed after being asked to stop (drained, cancelled) | handed back | yes, or cancelled | no |
| LOST: another attempt holds the step | nothing | by whoever holds it | no |
| a signal or another code, with nobody having asked | `worker_lost`, `internal` | yes; after a loss keeping little in memory | yes |
| no sign of life (hung, and killed) | `worker_lost` | likewise | yes |
| its lease ran out (the machine died) | `worker_lost` | likewise | yes |

A step that has failed `max_attempts` times has failed for good; what does not count may happen any number of times.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Codes that a runner chooses; any other code, and any signal (negative, as in `subprocess`), is a crash."""

    DONE = 0  # the step is recorded as succeeded
    FAILED = 10  # the failure is recorded, with its reason
    STOPPED = 11  # asked to stop: the last checkpoint stands, nothing is recorded
    LOST = 12  # another attempt, or nobody, holds the step: whatever this one did is void
