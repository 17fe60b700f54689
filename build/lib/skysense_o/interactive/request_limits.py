"""Limits on requests, checked before the application reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MULTIPART_BYTES = 64 << 10
"""Bytes allowed for the headers around an uploaded file."""


class RequestLimits:
    """ASGI middleware: refuse requests that are too large, uploads to a full folder, and files given as addresses.

    The page for reviewers is made with Gradio, which would fetch a file whose path is an http address.

    Args:
        app: the application.
        folder: folder of all uploads.
        upload_bytes, request_bytes, folder_bytes: see `Limits`.
    """

    def __init__(self, app: ASGIApp, folder: Path, upload_bytes: int, request_bytes: int, folder_bytes: int) -> None:
        self.app, self.folder, self.folder_bytes = app, folder, folder_bytes
        self.upload_bytes, self.request_bytes = upload_bytes + MULTIPART_BYTES, request_bytes
        self.expected_bytes = 0  # total size of the uploads in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        limit = self.upload_bytes if upload else self.request_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            await _refuse(413, f"a request of {int(declared):,} bytes; {limit:,} are allowed")(scope, receive, send)
        elif upload and folder_size(self.folder) + self.expected_bytes > self.folder_bytes:
            await _refuse(507, "the server has no room for further uploads: try again later")(scope, receive, send)
        elif upload:
            expected = int(declared) if declared.isdigit() else limit
            self.expected_bytes += expected
            try:
                await self.app(scope, _counted(receive, limit), send)
            finally:
                self.expected_bytes -= expected
        else:
            body = await _read(receive, limit)
            if body is None:
                refused = _refuse(413, f"a request of more than {limit:,} bytes is not allowed")
            elif (why := wrong_json(body)) is not None:
                refused = _refuse(400, why)
            else:
                await self.app(scope, _replay(body, receive), send)
                return
            await refused(scope, receive, send)


def wrong_json(body: bytes) -> str | None:
    """Why a JSON body is refused: an http address in place of a file, or too deep nesting. None if it is accepted."""
    try:
        values = [json.loads(body)]
    except RecursionError:
        return "the JSON is nested too deeply"
    except ValueError:  # a body that is not JSON is passed on
        return None
    while values:
        value = values.pop()
        if isinstance(value, dict):
            address = value.get("path")
            if isinstance(address, str) and address.strip().lower().startswith(("http:", "https:")):
                return "files are uploaded here and not fetched from an address"
            values += value.values()
        elif isinstance(value, list):
            values += value
    return None


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder and its subfolders. Files that are deleted meanwhile count 0."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _refuse(code: int, why: str) -> PlainTextResponse:
    return PlainTextResponse(why, status_code=code, headers={"connection": "close"})


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if it has more bytes than allowed."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body that was already read, and then the messages that follow it."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def _counted(receive: Receive, limit: int) -> Receive:
    """A `receive` that ends the body where it exceeds the limit; the reader then reports a broken upload."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= limit else {"type": "http.disconnect"}

    return counted
