"""What tests of more than one part of the engine use."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a step's time here; they stay empty, and the numbers in them lie beside them as JSON, as ever."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch())
