"""Serve the review page, which is made with Gradio: read dragged boxes, show errors as messages, limit requests."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from html import escape
from pathlib import Path

from skysense_o.clicks import box_between
from skysense_o.errors import USER_ERRORS, message
from skysense_o.interactive.limits import Limits


def guarded(callback: Callable) -> Callable:
    """Wrap a callback so that its errors appear as a message on the page; all outputs then stay as they are.

    The message of a user error is shown. Any other error is logged, and the page only says that something went wrong.
    """
    import gradio as gr

    @functools.wraps(callback)
    def run(*args):
        try:
            return callback(*args)
        except USER_ERRORS as error:
            text = message(error)
        except Exception:
            logging.exception("a callback of the page failed")
            text = "Something went wrong on the server. Its log says what."
        gr.Warning(escape(text, quote=False), title="", duration=10)
        return gr.skip()

    return run


def script_tag(path: Path) -> str:
    """A JavaScript file as a module for the head of a page."""
    return f"<script type='module'>{path.read_text()}</script>"


DRAG = script_tag(Path(__file__).with_name("drag.js"))
"""Script that sends boxes that are dragged over the image `view` to the hidden field `dragged`; see `dragged_box`."""


def dragged_box(text: str, zoom: int) -> tuple[int, int, int, int]:
    """Read a box that drag.js sent.

    Args:
        text: "x0 y0 x1 y1 ...": two opposite corner pixels of the displayed image, both inside the box.
        zoom: factor by which the image is enlarged on the page.

    Returns:
        Half-open XYXY in pixels of the image.

    Raises:
        ValueError: the text is not a box.
    """
    numbers = text.split()[:4]
    if len(numbers) < 4 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is not a box: write x0 y0 x1 y1, in pixels of the image as shown")
    x0, y0, x1, y1 = (int(number) // zoom for number in numbers)
    return box_between((x0, y0), (x1, y1))


def serve_review(
    blocks,
    root: Path,
    host: str,
    port: int,
    **options,
) -> None:
    """Serve a Gradio page, print its address, and return when the server ends.

    Args:
        blocks: the page.
        root: Gradio's folder for files; the browser does not see its path.
        host: address to bind.
        port: port of the page.
        options: further arguments of Gradio's `launch`.
    """
    from starlette.middleware import Middleware

    from skysense_o.data_engine.review.hidden_paths import HiddenPaths
    from skysense_o.interactive.request_limits import RequestLimits

    limits = Limits()
    sizes = {name: getattr(limits, name) for name in ("upload_bytes", "request_bytes", "folder_bytes")}
    middleware = [Middleware(HiddenPaths, folder=root), Middleware(RequestLimits, folder=root, **sizes)]
    _, address, _ = blocks.queue(max_size=limits.queue).launch(
        server_name=host, server_port=port, share=False, footer_links=[], quiet=True, prevent_thread_lock=True,
        ssr_mode=False, max_file_size=limits.upload_bytes, app_kwargs={"middleware": middleware}, **options,
    )  # fmt: skip
    print(f"The review is at {address} (Ctrl+C ends it)", flush=True)
    blocks.block_thread()
