#!/usr/bin/env python
"""Take the pictures of the web page for docs/: start the page, open it in Chromium, and save what a visitor sees.

python tools/page_figures.py                       # docs/figures/page_1400.jpg, page_390.jpg, page_map_*.jpg
python tools/page_figures.py --output output/page

Needs Debian's chromium, and playwright (pip install -e ".[app,test]"). It takes a minute.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()

from skysense_o.errors import exit_code

VISITS = (  # each row: file name, width and height of the window, theme, label of the button that opens the example
    ("page_1400.jpg", 1400, 900, "light", None),
    ("page_390.jpg", 390, 844, "dark", None),
    ("page_map_1400.jpg", 1400, 900, "dark", "River and town (GeoTIFF)"),
    ("page_map_390.jpg", 390, 844, "light", "River and town (GeoTIFF)"),
)
WAIT_MS = 180_000


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--output",
        type=Path,
        default=ROOT / "docs/figures",
        metavar="FOLDER",
        help="folder for the pictures (default: docs/figures)",
    )
    p.add_argument(
        "--port", type=int, default=7868, help="port of the web page while the pictures are taken (default: 7868)"
    )
    return p


def take(page, example: str | None) -> None:
    """Wait until the page shows the result of the first example, or of the example that the given button opens."""
    page.get_by_text("yellowstone_0.4m.jpg · ").wait_for()
    page.locator("#map canvas").wait_for()
    page.get_by_role("button", name=re.compile("^road")).wait_for()
    if example:
        before = page.locator("#map").get_attribute("data-shown")
        page.get_by_role("button", name=example).click()
        page.wait_for_function("was => (document.querySelector('#map').dataset.shown ?? was) !== was", arg=before)
        page.wait_for_function("document.querySelectorAll('.leaflet-tile-loaded').length > 0")
        page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(1500)  # the map fades in and comes to rest


def go(page, address: str, served: subprocess.Popen) -> None:
    """Open the address, and wait for a page that has not started yet.

    Raises:
        OSError: the page's process has ended.
    """
    from playwright.sync_api import Error

    while served.poll() is None:
        try:
            page.goto(address, wait_until="domcontentloaded")
            return
        except Error as error:
            if "ERR_CONNECTION_REFUSED" not in str(error):
                raise
            page.wait_for_timeout(500)
    raise OSError(f"the page ended with code {served.returncode}: the lines above say why")


def run() -> int:
    args = parser().parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed: apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    args.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "demo/app.py"), "--port", str(args.port)]
    with subprocess.Popen(command) as served, sync_playwright() as p:
        try:
            browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            for name, width, height, theme, example in VISITS:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
                page.set_default_timeout(WAIT_MS)
                go(page, f"http://127.0.0.1:{args.port}", served)
                take(page, example)
                page.screenshot(path=args.output / name, type="jpeg", quality=85)
                print(args.output / name)
                page.close()
            browser.close()
        finally:
            served.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
