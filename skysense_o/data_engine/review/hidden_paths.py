"""Hide the server's file paths from the browser.

Gradio's protocol contains the path of each file on the server: the answer to an upload is a path, which the browser
sends back with the next event. The true path may contain a user's name (if TMPDIR does) and the names of others'
folders, so the browser gets an alias in its place.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

TEXT = (b"text/html", b"application/json", b"text/event-stream", b"text/plain")
"""Content types of the responses that may contain paths. Downloads and images pass unchanged."""


class HiddenPaths:
    """ASGI middleware: replace a folder's path by an alias in responses, and the alias by the path in requests.

    The alias has the length of the path, so that the Content-Length headers stay right. Messages are processed one by
    one, so a path that a server splits between two messages would not be hidden; but servers do not split small JSON.

    Args:
        app: the application.
        folder: absolute path, long enough that the same text does not occur by chance.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
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
        text = False

        async def receive_inward() -> Message:
            message = await receive()
            return {**message, "body": self._inward(message["body"])} if "body" in message else message

        async def send_outward(message: Message) -> None:
            nonlocal text
            if "headers" in message:
                text = dict(message["headers"]).get(b"content-type", b"").startswith(TEXT)
                headers = [(k, v.replace(self.path, self.alias)) for k, v in message["headers"]]
                message = {**message, "headers": headers}
            if text and "body" in message:
                message = {**message, "body": bytes(message["body"]).replace(self.path, self.alias)}
            await send(message)

        await self.app(scope, receive_inward, send_outward)

    def _inward(self, data: bytes) -> bytes:
        return data.replace(self.alias, self.path)
