"""Web pages on this machine: how they are started, and what people see of mistakes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from skysense_o.clicks import box_between
from skysense_o.errors import USER_ERRORS, message


def guarded(callback: Callable) -> Callable:
    """Mistakes become one line on the page; anything else goes to the log and not to the browser."""
    import gradio as gr

    @functools.wraps(callback)
    def run(*args):
        try:
            return callback(*args)
        except USER_ERRORS as error:
            raise gr.Error(message(error), title="", duration=10, print_exception=False) from error
        except Exception as error:
            logging.exception("a callback of the page failed")
            raise gr.Error("That went wrong here; the server's log says why.", print_exception=False) from error

    return run


def script_tag(path: Path) -> str:
    """A file of JavaScript for a page's head, with names of its own."""
    return f"<script type='module'>{path.read_text()}</script>"


DRAG = script_tag(Path(__file__).with_name("drag.js"))
"""Boxes dragged over the image `view` arrive in the hidden field `dragged`; see `dragged_box`."""


def dragged_box(text: str, zoom: int) -> tuple[int, int, int, int]:
    """What drag.js wrote, the corner pixels of a box -> half-open XYXY, of an image that is shown `zoom` times larger.

    Raises:
        ValueError: something else was written.
    """
    numbers = text.split()[:4]
    if len(numbers) < 4 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is no box: x0 y0 x1 y1, in pixels of the image as it is shown")
    x0, y0, x1, y1 = (int(number) // zoom for number in numbers)
    return box_between((x0, y0), (x1, y1))


def serve(blocks, root: Path, host: str, port: int | None, block: bool, title: str = "SkySense-O", **options) -> str:
    """Start the server of a Gradio page; its address.

    Args:
        root: Gradio's folder for files, whose path the browser never sees. port: any free one where None.
        block: say the address, and come back when the server ends. options: of Gradio's `launch`.
    """
    from starlette.middleware import Middleware

    from skysense_o.interactive.hidden_paths import HiddenPaths

    _, address, _ = blocks.queue(max_size=32).launch(
        server_name=host, server_port=port, share=False, footer_links=[], quiet=True, prevent_thread_lock=True,
        ssr_mode=False, app_kwargs={"middleware": [Middleware(HiddenPaths, folder=root)]}, **options,
    )  # fmt: skip
    if block:
        print(f"{title} is at {address} (Ctrl+C ends it)", flush=True)
        blocks.block_thread()
    return address
