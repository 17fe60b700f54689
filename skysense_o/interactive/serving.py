"""Start a web page on this machine."""

from __future__ import annotations

from pathlib import Path


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
