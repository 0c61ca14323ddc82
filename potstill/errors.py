"""What the command line and the client raise: one sentence that a person can act on."""


class PotstillError(Exception):
    """Something went wrong that a person can act on; its text says what, and what to try."""


class JobFailed(PotstillError):
    """A job ended as `failed` or `cancelled`; `job` is its last body."""

    def __init__(self, message: str, job: dict[str, object]) -> None:
        super().__init__(message)
        self.job = job
