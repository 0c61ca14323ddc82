"""What the exit code of a runner says to its supervisor."""

from enum import IntEnum


class Exit(IntEnum):
    """Codes that a runner chooses; any other code, and any signal (negative, as in `subprocess`), is a crash."""

    DONE = 0  # the step is recorded as succeeded
    FAILED = 10  # the failure is recorded, with its reason
    STOPPED = 11  # asked to stop: the last checkpoint stands, nothing is recorded
    LOST = 12  # another attempt, or nobody, holds the step: whatever this one did is void
