"""One bar for work made of unlike parts: a count that only goes up."""

from dataclasses import dataclass, field

from ddcore.events import Reporter


@dataclass
class Ticker:
    """Calls to `tick` count towards `total`; the reporter may raise `Stopped` in any of them."""

    reporter: Reporter
    total: int
    unit: str
    done: int = field(default=0, init=False)

    def tick(self, note: str = "") -> None:
        self.reporter.progress(self.done, self.total, self.unit, note)
        self.done = min(self.done + 1, self.total)

    def pulse(self) -> None:
        """Inside a long unit of work, likewise."""
        self.reporter.pulse()

    def skip(self, count: int) -> None:
        """Count work that turned out to be done already."""
        self.done = min(self.done + count, self.total)

    def finish(self) -> None:
        self.reporter.progress(self.total, self.total, self.unit)
