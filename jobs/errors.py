"""What can be wrong with a request or a claim, apart from the spec itself (`ddcore.errors.SpecError`)."""

from collections.abc import Sequence
from datetime import datetime


class JobsError(Exception):
    """Base of all errors that `jobs` raises on purpose: a sentence, and what to try."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail, self.hint = detail, hint


class NotFound(JobsError):
    """Nothing has this id. kind is a word for people: "job", "artifact", ..."""

    def __init__(self, kind: str, ref: str, hint: str = "") -> None:
        super().__init__(f"there is no {kind} {ref!r}", hint)
        self.kind, self.ref = kind, ref


class Gone(JobsError):
    """A file that was there and outlived its time: what is known of it is left."""

    def __init__(self, name: str, at: datetime) -> None:
        detail = f"the file {name!r} was removed on {at:%Y-%m-%d}, because nobody had used it for as long as such files are kept"
        super().__init__(detail, "post its job's spec again: what is gone is computed again")


class UnknownDataset(NotFound):
    """No dataset has this id or name; `close` lists names that resemble it."""

    def __init__(self, ref: str, close: Sequence[str]) -> None:
        super().__init__("dataset", ref, f"close names: {', '.join(close)}" if close else "list the datasets, or upload one")
        self.close = list(close)


class Conflict(JobsError):
    """The request makes sense, but not in the present state."""


class IdempotencyConflict(Conflict):
    """The key was used before, with another body."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the idempotency key {key!r} was used before with another body", "send a new key with a new body")
        self.key = key


class WrongState(Conflict):
    """The job's state does not allow what was asked."""

    def __init__(self, job_id: str, state: str, action: str, hint: str = "") -> None:
        super().__init__(f"job {job_id} is {state}: it cannot be {action}", hint)
        self.job_id, self.state, self.action = job_id, state, action


class LeaseLost(JobsError):
    """Another attempt owns the step, or it has ended: nothing was written."""

    def __init__(self, step_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} no longer owns step {step_id}", "stop: another worker has taken over")
        self.step_id, self.attempt = step_id, attempt


class StoreFull(JobsError):
    """The artifact store has no room; nothing half-written is left."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"the artifact store has no room for a file of {needed:,} bytes", "free some disk space and try again")
        self.needed = needed


class NoRoom(StoreFull):
    """What was asked for would fill the artifact store; nothing was begun."""

    def __init__(self, needed: int, said: str, hint: str) -> None:
        JobsError.__init__(self, f"the artifact store has no room for about {needed:,} bytes: {said}", hint)
        self.needed = needed


class StoreAway(JobsError):
    """The artifact store's server does not answer, or refuses, also after some tries."""

    def __init__(self, said: str) -> None:
        super().__init__(f"the artifact store cannot be used just now: {said}", "try again in a moment; if it stays so, check its settings")


class StoreUnusable(JobsError):
    """The artifact store that the settings name cannot be opened."""


class Damaged(JobsError):
    """A stored file's bytes no longer have its name."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"the stored file {sha256[:12]} is damaged", "bring it back from a backup, or retry the job: it is computed again")
        self.sha256 = sha256


class WrongRevision(JobsError):
    """The database's schema is not the one that this code was written for."""


class ReadOnly(JobsError):
    """The database takes no changes."""


class BadCursor(JobsError):
    """A page cursor that this service did not give out."""
