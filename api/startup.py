"""What a server says when this service refuses to start: the reason, which is logged already, and no traceback."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REFUSALS = ("jobs.errors.",)  # by module, as the last line of a traceback names them


class PlainRefusal:
    """ASGI middleware. A start that fails for a reason of our own is told without its traceback; any other keeps it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and message.get("message", "").strip().rpartition("\n")[2].startswith(
                _REFUSALS
            ):
                message = {"type": message["type"], "message": ""}
            await send(message)

        await self.app(scope, receive, tell if scope["type"] == "lifespan" else send)
