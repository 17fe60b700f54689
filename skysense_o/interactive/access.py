"""Access to the web page: cookies, file names, requests from other sites, and what the page itself may load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skysense_o.interactive.closing import ClosedSession
from skysense_o.interactive.opening import UPLOADS
from skysense_o.interactive.page import Page
from skysense_o.interactive.session import Session
from skysense_o.interactive.visitors import OpenImage, Visitor

COOKIE = "skysense_o_visitor"
ENDED = "This page was idle for too long, or the server was started again. Reload it."
CLOSED = "This image is closed: open it again."
NAME_LENGTH = 100
"""Longest file name in bytes, without its suffix."""


class Body(BaseModel):
    """Base class of the JSON bodies of requests."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")


class PointBody(Body):
    """A click, in pixels of the grid that the browser shows."""

    x: float
    y: float
    inside: bool = True


class BoxBody(Body):
    """Two opposite corners of a box, in pixels of the grid that the browser shows."""

    x0: float
    y0: float
    x1: float
    y1: float


def visitor_of(request: Request, page: Page) -> Visitor:
    """The visitor who sent a request; raises status 409 if the cookie is unknown."""
    visitor = page.visitors.find(request.cookies.get(COOKIE))
    if visitor is None:
        raise HTTPException(409, ENDED)
    return visitor


def image_of(request: Request, page: Page, key: str) -> OpenImage:
    """One of the visitor's own images; raises status 404 for other visitors' images."""
    image = visitor_of(request, page).images.get(key)
    if image is None or image.session.closed:
        raise HTTPException(404, CLOSED)
    return image


def safe_name(name: str) -> str:
    """Make a safe file name: no folders, no characters with a special meaning.

    Raises:
        HTTPException: the suffix is not accepted.

    >>> safe_name("../a?b.TIF")
    'a_b.TIF'
    """
    base = re.sub(r"[^\w.\-() ]", "_", name.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(". ")
    stem, suffix = Path(base).stem, Path(base).suffix
    if suffix.lower() not in UPLOADS:
        raise HTTPException(415, f"{base[:40]!r} is not an accepted image: use {', '.join(UPLOADS)}")
    while len(stem.encode()) > NAME_LENGTH:
        stem = stem[:-1]
    return stem + suffix


@contextmanager
def session_of(request: Request, page: Page, key: str) -> Iterator[Session]:
    """The session of one of the visitor's own images; it keeps its memory and files in this context."""
    session = image_of(request, page, key).session
    try:
        with session.in_use():
            yield session
    except ClosedSession as error:
        raise HTTPException(404, CLOSED) from error


class PageGuard:
    """ASGI middleware: refuse requests for changes from other sites, and send the content security policy.

    Args:
        app: the application.
        basemap: address of map tiles, see `Page`.
    """

    def __init__(self, app: ASGIApp, basemap: str = "") -> None:
        self.app = app
        tiles = urlsplit(basemap.replace("{s}", "*"))
        images = f"'self' blob: data: {tiles.scheme}://{tiles.netloc}" if basemap else "'self' blob: data:"
        self.headers = {
            "content-security-policy": f"default-src 'self'; img-src {images}; frame-ancestors 'none'; base-uri 'none'",
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        site = Headers(scope=scope).get("sec-fetch-site")
        # A link on another site may open the page, but other sites may not call the API.
        looked_at = scope["method"] in ("GET", "HEAD") and not scope["path"].startswith("/api/")
        if site in ("cross-site", "same-site") and not looked_at:
            await JSONResponse({"error": "requests from other sites are refused"}, 403)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_guarded)
