"""Run the server of the web page, and delete its folder at the end, also after a signal."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_until_stopped(prefix: str) -> Iterator[tuple[Path, threading.Event]]:
    """Make the folder for all temporary files of a server; SIGTERM and SIGINT end the context and delete it.

    Call it in the main thread.

    Args:
        prefix: beginning of the folder's name.

    Yields:
        The folder, and an event that a signal sets.
    """
    stopped = threading.Event()

    def stop(number: int, _) -> None:
        stopped.set()
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    temporary = tempfile.tempdir
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        tempfile.tempdir = str(folder)
        yield folder, stopped
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        tempfile.tempdir = temporary
        for _ in range(20):  # a request that still runs may write files while the folder is deleted
            if folder is not None and folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(app, host: str, port: int | None) -> str:
    """Start the server of an ASGI application in a thread.

    Args:
        app: the application.
        host: address to bind.
        port: None for any free port.

    Returns:
        The address.

    Raises:
        OSError: the port is in use, or the address cannot be bound.
    """
    import uvicorn

    listener = socket.create_server(
        (host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
    )
    config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False, limit_concurrency=256)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    if not server.started:
        raise OSError(f"the server could not start at {host}, port {port}: see the messages above")
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}/"
