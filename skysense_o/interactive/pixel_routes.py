"""Routes of images, tiles, maps and files, and of requests too short to wait in the queue."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from skysense_o.interactive.access import Body, BoxBody, PointBody, image_of, session_of, visitor_of
from skysense_o.interactive.exports import run_settings
from skysense_o.interactive.job_queue import JobQueue
from skysense_o.interactive.page import Page
from skysense_o.interactive.view import (
    class_png,
    connected_part,
    encoded,
    map_png,
    numbered_part,
    thumbnail,
    words_and_colors,
)

KEPT = {"cache-control": "private, max-age=3600"}
"""Header of answers that a browser may cache, because a changed answer has another address."""
CHUNK = 1 << 20
"""Bytes that are read at once of a file to download."""


class TypedBody(Body):
    """Body of a request with the words that a person is still typing."""

    words: str


def add_pixel_routes(app: FastAPI, page: Page, queue: JobQueue) -> None:
    """Add the routes of images, maps and files."""
    _add_images(app, page)
    _add_answers(app, page, queue)


def _png(data: bytes | None) -> Response:
    """A response with a PNG; status 204 if there is no PNG."""
    return Response(data, 200 if data else 204, KEPT if data else None, "image/png" if data else None)


def _add_images(app: FastAPI, page: Page) -> None:
    """Add the image, its masks, and the tiles of its map."""

    @app.get("/api/images/{key}/image.jpg")
    def image(request: Request, key: str):
        with session_of(request, page, key) as session:
            return Response(encoded(session.image.rgb, "jpeg", quality=92), media_type="image/jpeg", headers=KEPT)

    @app.get("/api/images/{key}/thumbnail.jpg")
    def small(request: Request, key: str):
        with session_of(request, page, key) as session:
            return Response(thumbnail(session.image.rgb, 80), media_type="image/jpeg", headers=KEPT)

    @app.get("/api/images/{key}/classes.png")
    def classes(request: Request, key: str):
        with session_of(request, page, key) as session:
            return _png(class_png(session) if session.found is not None else None)

    @app.get("/api/images/{key}/region.png")
    def region(request: Request, key: str):
        with session_of(request, page, key) as session:
            selected = session.region
            return _png(map_png(session, [selected.mask.astype("uint8")]) if selected else None)

    @app.get("/api/images/{key}/regions.png")
    def regions(request: Request, key: str):
        with session_of(request, page, key) as session:
            labels = session.proposal_labels
            return _png(map_png(session, [labels.astype("uint8")]) if labels is not None else None)

    @app.get("/api/images/{key}/tiles/{zoom}/{column}/{row}.png")
    def tile(request: Request, key: str, zoom: int, column: int, row: int):
        with session_of(request, page, key) as session:
            if session.map is None:
                raise HTTPException(404, "this image has no place on the ground")
            try:
                pixels = session.map.tile(zoom, column, row)
            except ValueError as error:
                raise HTTPException(404, str(error)) from error
        return _png(None if pixels is None else encoded(pixels, "png", compress_level=1))

    @app.get("/api/images/{key}/part")
    def part(request: Request, key: str, x: float = 0, y: float = 0, name: str = "", number: int = 1):
        with session_of(request, page, key) as session:
            try:
                if name:
                    return numbered_part(session, name, number)
                return connected_part(session, *map(int, session.map.pixel(x, y) if session.map else (x, y)))
            except (ValueError, OverflowError) as error:
                raise HTTPException(422, str(error)) from error


def _add_answers(app: FastAPI, page: Page, queue: JobQueue) -> None:
    """Add requests that are too short to wait in the queue, and files to download."""

    async def preview(request: Request, key: str, mask_of: Callable):
        shown = image_of(request, page, key)
        return _png(await queue.run_if_idle(lambda: mask_of(shown)))

    @app.post("/api/preview/{key}/click")
    async def preview_click(request: Request, key: str, body: PointBody):
        return await preview(request, key, lambda shown: page.preview_click(shown, body.x, body.y, body.inside))

    @app.post("/api/preview/{key}/box")
    async def preview_box(request: Request, key: str, body: BoxBody):
        return await preview(request, key, lambda shown: page.preview_box(shown, body.x0, body.y0, body.x1, body.y1))

    @app.post("/api/familiar")
    async def familiar(request: Request, body: TypedBody):
        visitor_of(request, page)
        with suppress(ValueError):  # an incomplete colour or a blank word while somebody types
            words = [word.strip() for word in words_and_colors(body.words)[0] if word.strip()]
            page.limits.check_words(words)
            return await queue.run_if_idle(lambda: page.familiar(words)) or {}
        return {}

    @app.get("/api/images/{key}/results.zip")
    def results(request: Request, key: str):
        with session_of(request, page, key) as session:
            path = session.folder / f"{session.image.stem}_results.zip"
            try:
                file = path.open("rb")
            except FileNotFoundError as error:
                raise HTTPException(404, "the results were not packed yet") from error
        headers = {"content-length": str(os.fstat(file.fileno()).st_size), **_attached(path.name)}
        return StreamingResponse(_parts(file), media_type="application/zip", headers=headers)

    @app.get("/api/images/{key}/run.json")
    def run(request: Request, key: str):
        with session_of(request, page, key) as session:
            if session.found is None:
                raise HTTPException(404, "nothing was segmented yet")
            text, name = json.dumps(run_settings(session), indent=1), f"{session.image.stem}_run.json"
        return Response(text, media_type="application/json", headers=_attached(name))


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    """The content of an open file, which can be read to its end even when its folder is deleted."""
    with file:
        while part := file.read(CHUNK):
            yield part


def _attached(name: str) -> dict[str, str]:
    """The header that makes a browser save an answer as a file with this name."""
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
    return {"content-disposition": f"attachment; filename=\"{plain}\"; filename*=utf-8''{quote(name)}"}
