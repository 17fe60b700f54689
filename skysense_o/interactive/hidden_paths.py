"""Gradio tells browsers where on the server their files lie. Here that place goes by another name outside."""

from __future__ import annotations

import secrets
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HiddenPaths:
    """ASGI middleware: a folder's path becomes an alias in all that is sent, and the alias the path in all that comes.

    The alias has the path's length, so that no length in a header changes. Messages are taken one by one: a path that
    a server splits between two of them would come through, which servers of small JSON do not do.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        """folder: absolute; long enough that its path means nothing else where it turns up."""
        self.app, self.path = app, str(folder).encode()
        self.alias = b"/" + secrets.token_hex(len(self.path)).encode()[: len(self.path) - 1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = dict(scope)
        for key in ("raw_path", "query_string"):
            scope[key] = self._inward(scope.get(key) or b"")
        scope["path"] = self._inward(scope["path"].encode()).decode()

        async def receive_inward() -> Message:
            message = await receive()
            return {**message, "body": self._inward(message["body"])} if "body" in message else message

        async def send_outward(message: Message) -> None:
            if "body" in message:
                message = {**message, "body": bytes(message["body"]).replace(self.path, self.alias)}
            if "headers" in message:
                headers = [(k, v.replace(self.path, self.alias)) for k, v in message["headers"]]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive_inward, send_outward)

    def _inward(self, data: bytes) -> bytes:
        return data.replace(self.alias, self.path)
