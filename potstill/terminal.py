"""The terminal that all of the command line writes to."""

from rich.console import Console

console = Console(highlight=False)


def say(text: str) -> None:
    """Print one line, however long, with rich's markup."""
    console.print(text, soft_wrap=True)
