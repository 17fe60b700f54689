"""Routes of images, tiles, maps and files, and of requests too short to wait in the queue."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse

from skysense_o.interactive.access import Body, PointBody, image_of, visitor_of
from skysense_o.interactive.exports import run_settings
from skysense_o.interactive.job_queue import JobQueue
from skysense_o.interactive.page import Page
from skysense_o.interactive.view import class_png, connected_part, encoded, map_png, thumbnail, words_and_colors

KEPT = {"cache-control": "private, max-age=3600"}
"""Header for answers whose address changes with their content."""


class TypedBody(Body):
    """Words as they are typed."""

    words: str


def add_pixel_routes(app: FastAPI, page: Page, queue: JobQueue) -> None:
    """Add the routes of images, maps and files."""
    _add_images(app, page)
    _add_answers(app, page, queue)


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png", headers=KEPT)


def _add_images(app: FastAPI, page: Page) -> None:
    """Add the image, its masks, and the tiles of its map."""

    @app.get("/api/images/{key}/image.jpg")
    def image(request: Request, key: str):
        rgb = image_of(request, page, key).session.image.rgb
        return Response(encoded(rgb, "jpeg", quality=92), media_type="image/jpeg", headers=KEPT)

    @app.get("/api/images/{key}/thumbnail.jpg")
    def small(request: Request, key: str):
        rgb = image_of(request, page, key).session.image.rgb
        return Response(thumbnail(rgb, 80), media_type="image/jpeg", headers=KEPT)

    @app.get("/api/images/{key}/classes.png")
    def classes(request: Request, key: str):
        session = image_of(request, page, key).session
        return _png(class_png(session)) if session.found is not None else Response(status_code=204)

    @app.get("/api/images/{key}/region.png")
    def region(request: Request, key: str):
        session = image_of(request, page, key).session
        selected = session.region
        return _png(map_png(session, [selected.mask.astype("uint8")])) if selected else Response(status_code=204)

    @app.get("/api/images/{key}/regions.png")
    def regions(request: Request, key: str):
        session = image_of(request, page, key).session
        labels = session.proposal_labels
        return _png(map_png(session, [labels.astype("uint8")])) if labels is not None else Response(status_code=204)

    @app.get("/api/images/{key}/tiles/{zoom}/{column}/{row}.png")
    def tile(request: Request, key: str, zoom: int, column: int, row: int):
        session = image_of(request, page, key).session
        if session.map is None:
            raise HTTPException(404, "this image's location on the ground is unknown")
        try:
            pixels = session.map.tile(zoom, column, row)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error
        return (
            Response(status_code=204, headers=KEPT)
            if pixels is None
            else _png(encoded(pixels, "png", compress_level=1))
        )

    @app.get("/api/images/{key}/part")
    def part(request: Request, key: str, x: float, y: float):
        session = image_of(request, page, key).session
        try:
            return connected_part(session, *map(int, session.map.pixel(x, y) if session.map else (x, y)))
        except (ValueError, OverflowError) as error:
            raise HTTPException(422, str(error)) from error


def _add_answers(app: FastAPI, page: Page, queue: JobQueue) -> None:
    """Add requests that are too short to wait in the queue, and files to download."""

    @app.post("/api/preview/{key}")
    async def preview(request: Request, key: str, body: PointBody):
        shown = image_of(request, page, key)
        mask = await queue.run_if_idle(lambda: page.preview(shown, body.x, body.y, body.inside))
        if mask is None:
            return Response(status_code=204)
        return _png(map_png(shown.session, [mask.astype("uint8")]))

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
        session = image_of(request, page, key).session
        path = session.folder / f"{session.image.stem}_results.zip"
        if not path.is_file():
            raise HTTPException(404, "the results were not packed yet")
        return FileResponse(path, filename=path.name)

    @app.get("/api/images/{key}/run.json")
    def run(request: Request, key: str):
        session = image_of(request, page, key).session
        if session.found is None:
            raise HTTPException(404, "nothing was segmented yet")
        name = re.sub(r"[^\w.-]", "_", session.image.stem, flags=re.ASCII)
        headers = {"content-disposition": f'attachment; filename="{name}_run.json"'}
        return Response(json.dumps(run_settings(session), indent=1), media_type="application/json", headers=headers)
