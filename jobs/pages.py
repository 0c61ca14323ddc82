"""Lists by pages: newest first, continued from the last id seen, so that what is added meanwhile disturbs nothing."""

import base64
import binascii
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.errors import BadCursor

Row = TypeVar("Row")

MOST = 200


def page(
    session: Session,
    query: Select[Row],
    key: InstrumentedAttribute[str],
    limit: int,
    cursor: str | None,
    *,
    by: InstrumentedAttribute[str] | None = None,
) -> tuple[list[Row], str | None]:
    """The next `limit` (1 to 200) rows of `query` by falling `key`, and the cursor of the page after them. Raises `BadCursor`.

    by: a column of a joined table that equals `key`, where that is the one whose index has the rows in order.
    """
    limit, order = min(max(limit, 1), MOST), key if by is None else by
    if cursor is not None:
        query = query.where(order < _open(cursor))
    rows = list(session.scalars(query.order_by(order.desc()).limit(limit + 1)))
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, _seal(getattr(rows[-1], key.key)) if more else None


def _seal(last: Any) -> str:
    return base64.urlsafe_b64encode(f"after:{last}".encode()).decode().rstrip("=")


def _open(cursor: str) -> str:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise BadCursor(f"{cursor!r} is not a cursor of this service", "take next_cursor of the page before, unchanged") from error
    if not text.startswith("after:"):
        raise BadCursor(f"{cursor!r} is not a cursor of this service", "take next_cursor of the page before, unchanged")
    return text.removeprefix("after:")
