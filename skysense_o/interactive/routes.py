"""The routes of the web page: they identify the visitor, parse the request and encode the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field
from starlette.requests import ClientDisconnect

from skysense_o.image_io import read_image
from skysense_o.interactive.access import (
    COOKIE,
    Body,
    BoxBody,
    PageGuard,
    PointBody,
    image_of,
    safe_name,
    session_of,
    visitor_of,
)
from skysense_o.interactive.image_state import image_state
from skysense_o.interactive.job_queue import JobQueue
from skysense_o.interactive.page import Page
from skysense_o.interactive.pixel_routes import KEPT, add_pixel_routes
from skysense_o.interactive.request_limits import RequestLimits
from skysense_o.interactive.view import thumbnail
from skysense_o.interactive.visitors import IDLE_SECONDS

WEB = Path(__file__).with_name("web")


class WordsBody(Body):
    """Body of a request to segment the image by words."""

    words: str
    background: str = ""
    threshold: float = Field(0.0, ge=0, le=1)


class QuestionBody(Body):
    """Body of a request with a question about the image."""

    question: str


def create_app(page: Page) -> FastAPI:
    """Create the FastAPI application that serves a page and its requests."""
    queue = JobQueue(page.work, page.limits.jobs, page.limits.queue)

    @asynccontextmanager
    async def lifespan(_):
        # Requests outside the queue (tiles, masks as PNG) run in this thread pool. As many run at once as
        # `limits.jobs`, but at least two.
        to_thread.current_default_thread_limiter().total_tokens = max(2, page.limits.jobs)
        cleaner = asyncio.create_task(_clean(page))
        yield
        cleaner.cancel()

    app = FastAPI(title="SkySense-O", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    sizes = {name: getattr(page.limits, name) for name in ("upload_bytes", "request_bytes", "folder_bytes")}
    app.add_middleware(RequestLimits, folder=page.root, **sizes)
    app.add_middleware(PageGuard, basemap=page.basemap)

    @app.exception_handler(HTTPException)
    async def refused(_, error: HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_, error: RequestValidationError):
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    _add_pages(app, page)
    _add_requests(app, page, queue)
    add_pixel_routes(app, page, queue)
    app.mount("/web", StaticFiles(directory=WEB))
    return app


def _add_pages(app: FastAPI, page: Page) -> None:
    """Add the page itself, and answers that need no computation."""

    @app.get("/")
    def index():
        return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/api/state")
    def state(request: Request, response: Response):
        cookie, visitor = page.visitors.of(request.cookies.get(COOKIE))
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        response.set_cookie(COOKIE, cookie, IDLE_SECONDS * 24, httponly=True, samesite="strict", secure=secure)
        return {"about": page.about(), **page.state(visitor)}

    @app.get("/api/examples/{number}.jpg")
    def example_image(number: int):
        if not 0 <= number < len(page.examples):
            raise HTTPException(404, f"there is no example {number}")
        return Response(
            thumbnail(read_image(page.examples[number].path).filled()), media_type="image/jpeg", headers=KEPT
        )

    @app.get("/api/images/{key}")
    def shown(request: Request, key: str):
        image = image_of(request, page, key)
        with session_of(request, page, key):
            visitor_of(request, page).current = key
            return image_state(image)

    @app.delete("/api/images/{key}")
    def closed(request: Request, key: str):
        visitor = visitor_of(request, page)
        page.visitors.close(visitor, key)
        return page.state(visitor)


def _add_requests(app: FastAPI, page: Page, queue: JobQueue) -> None:
    """Add the routes of requests that take time. Each answer is a stream of JSON lines, see `JobQueue.stream`."""

    def stream(request: Request, callback: Callable[[], dict], after: Callable[[], None] = lambda: None):
        async def lines():
            try:
                async for line in queue.stream(callback, request.is_disconnected):
                    yield json.dumps(line) + "\n"
            finally:
                after()

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)

    def on(request: Request, key: str, action: Callable, *args):
        image = image_of(request, page, key)
        return stream(request, lambda: page.locked(image, action, *args))

    @app.post("/api/upload")
    async def upload(request: Request, name: str):
        visitor = visitor_of(request, page)
        path = await _stored(request, name, page.root, page.limits.upload_bytes)
        return stream(request, lambda: page.open(visitor, path), lambda: shutil.rmtree(path.parent, ignore_errors=True))

    @app.post("/api/examples/{number}")
    def example(request: Request, number: int):
        visitor = visitor_of(request, page)
        return stream(request, lambda: page.example(visitor, number))

    @app.post("/api/images/{key}/segment")
    def segment(request: Request, key: str, body: WordsBody):
        return on(request, key, page.segment, body.words, body.background, body.threshold)

    @app.post("/api/images/{key}/like")
    def like(request: Request, key: str, body: WordsBody):
        return on(request, key, page.like, body.words, body.background, body.threshold)

    @app.post("/api/images/{key}/click")
    def click(request: Request, key: str, body: PointBody):
        return on(request, key, page.click, body.x, body.y, body.inside)

    @app.post("/api/images/{key}/box")
    def box(request: Request, key: str, body: BoxBody):
        return on(request, key, page.box, body.x0, body.y0, body.x1, body.y1)

    @app.post("/api/images/{key}/ask")
    def ask(request: Request, key: str, body: QuestionBody):
        return on(request, key, page.ask, body.question)

    actions = {"undo": page.undo, "clear": page.clear, "everything": page.everything}
    actions |= {"name_scene": page.name_scene, "files": page.files}

    @app.post("/api/images/{key}/{action}")
    def act(request: Request, key: str, action: str):
        if action not in actions:
            raise HTTPException(404, f"there is no action {action[:20]!r}")
        return on(request, key, actions[action])


async def _stored(request: Request, name: str, root: Path, most: int) -> Path:
    """Store the body of an upload in a new folder below `root`; delete it if it is broken off or too large.

    Args:
        most: bytes that are allowed.
    """
    folder = Path(tempfile.mkdtemp(prefix="upload_", dir=root))
    try:
        path, size = folder / safe_name(name), 0
        with open(path, "wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise HTTPException(413, f"the file has more than the {most:,} bytes allowed here")
                file.write(chunk)
        return path
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ClientDisconnect):  # an upload that is too large also ends with this error
            raise HTTPException(413, "the upload was broken off, or is too large") from error
        raise


async def _clean(page: Page) -> None:
    """Close images that nobody uses, and delete uploads that nobody opened."""
    while True:
        await asyncio.sleep(60)
        try:
            await asyncio.to_thread(page.visitors.sweep)
            for folder in page.root.glob("upload_*"):
                if time.time() - folder.stat().st_mtime > IDLE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        except Exception:  # a file that vanished meanwhile must not end the cleaning for good
            logging.exception("the page could not clean up")
