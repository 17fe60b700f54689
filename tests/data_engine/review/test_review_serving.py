"""Tests of the review page's server: the alias that hides the work folder's path, and boxes sent by the browser."""

from __future__ import annotations

import asyncio

import pytest

from skysense_o.data_engine.review.hidden_paths import HiddenPaths
from skysense_o.data_engine.review.serving import dragged_box


def test_a_box_that_is_told_is_understood_or_refused():
    assert dragged_box("90 10 31 70 12345", 3) == (10, 3, 31, 24)
    for text in ("", "1 2 3", "1 2 3 x", "-1 2 3 4"):
        with pytest.raises(ValueError, match=f"'{text}' is not a box: write x0 y0 x1 y1, in pixels"):
            dragged_box(text, 1)


def test_the_folder_has_another_name_outside(tmp_path):
    """Responses contain an alias instead of the folder's path; in requests the alias is replaced by the path."""
    got, kind = {}, b"application/json"

    async def app(scope, receive, send):
        got.update(path=scope["path"], query=scope["query_string"], body=(await receive())["body"])
        headers = [(b"location", str(tmp_path).encode() + b"/x"), (b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": f'{{"path": "{tmp_path}/a.png"}}'.encode()})

    hidden, sent = HiddenPaths(app, tmp_path), []
    alias = hidden.alias.decode()
    assert len(alias) == len(str(tmp_path))

    async def receive():
        return {"type": "http.request", "body": f'["{alias}/b.png"]'.encode()}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": f"/file={alias}/c.png", "query_string": f"f={alias}".encode(), "headers": []}
    asyncio.run(hidden(scope, receive, send))
    assert got == {
        "path": f"/file={tmp_path}/c.png",
        "query": f"f={tmp_path}".encode(),
        "body": f'["{tmp_path}/b.png"]'.encode(),
    }
    assert str(tmp_path) not in str(sent)
    assert sent[1]["body"].decode() == f'{{"path": "{alias}/a.png"}}'
    kind = b"application/zip"
    sent.clear()
    asyncio.run(hidden(scope, receive, send))
    assert str(tmp_path) in sent[1]["body"].decode(), "the content of a downloaded file must not be changed"
