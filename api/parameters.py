"""Path, query and header parameters that more than one route takes."""

from typing import Annotated, Literal

from fastapi import Header, Path, Query

# Letters, digits and the like: what no id and no name of ours contains never reaches the database.
Id = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="as its list shows it")]
Ref = Annotated[str, Path(max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$", description="id or name")]
Limit = Annotated[int, Query(ge=1, le=200, description="how many to a page")]
Cursor = Annotated[str | None, Query(max_length=500, pattern=r"^[A-Za-z0-9_.=-]+$", description="`next_cursor` of the page before")]
DryRunFlag = Annotated[bool, Query(description="only say which steps would run, which are there already, and how much disk they take")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="any text of your own; the same key with the same body answers with the job that it made the first time",
    ),
]
Kind = Literal["distill", "evaluate", "observe", "sweep"]
State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
