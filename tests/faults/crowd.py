#!/usr/bin/env python
"""Load test of the web page: starts demo/app.py, simulates many users at once, prints response times and memory.

    python tests/faults/crowd.py                                    20 users for two minutes
    python tests/faults/crowd.py --users 4 --seconds 20             4 users for 20 seconds
    python tests/faults/crowd.py --json output/crowd.json -- --jobs 4     with options for demo/app.py after the dashes

Each user uploads an image of 700 x 500 pixels and segments it four times with 6 words, waiting some seconds before
each; then the user uploads another image. Each answer must contain the user's own words and nobody else's.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("road", "tree", "water", "building", "field", "car", "bridge", "ship", "sand", "roof", "grass", "rail")
TIMEOUT = 300


class PageUser:
    """A client of the page that sends the HTTP requests of one browser.

    Args:
        address: URL of the page, ending with a slash.
    """

    def __init__(self, address: str) -> None:
        self.address, self.key = address, ""
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        self.opener.open(f"{address}api/state", timeout=TIMEOUT).close()

    def open(self, image: bytes, name: str) -> str:
        """Upload an image; return the name that the page shows for it."""
        state = self._ask(f"upload?name={name}", image, "application/octet-stream")
        self.key = state["id"]
        return state["name"]

    def segment(self, words: str) -> list[str]:
        """Segment the open image with `words`; return the class names in the legend."""
        body = json.dumps({"words": words}).encode()
        return [row["name"] for row in self._ask(f"images/{self.key}/segment", body, "application/json")["classes"]]

    def _ask(self, path: str, body: bytes, kind: str) -> dict:
        """Send a request, whose answer is a stream of JSON lines; return the image's state from the last line."""
        request = urllib.request.Request(f"{self.address}api/{path}", body, {"Content-Type": kind})
        with self.opener.open(request, timeout=TIMEOUT) as answer:
            last = json.loads(answer.read().splitlines()[-1])
        if "result" not in last:
            raise RuntimeError(f"{path}: {last}")
        return last["result"]


class Server:
    """Run demo/app.py in a separate process."""

    def __init__(self, options: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, str(ROOT / "demo/app.py"), "--port", port, "--answerer", "", *options]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if " is at " not in line:
            raise RuntimeError(f"the page did not start: {line!r}")
        self.address = line.split(" is at ")[1].split()[0]

    def memory(self) -> dict[str, float]:
        """Return resident memory in MiB: "now" of the process and its children, "highest" peak of any process."""
        now, highest = 0, 0
        for pid in [self.process.pid, *map(int, self._children())]:
            try:
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            except (FileNotFoundError, ProcessLookupError):
                continue  # a child process that opened an upload has just ended
            if "VmRSS" not in status:
                continue  # the process has ended, but its parent has not yet read its exit code
            now += int(status["VmRSS"].split()[0])
            highest = max(highest, int(status["VmHWM"].split()[0]))
        return {"now": now / 1024, "highest": highest / 1024}

    def wait_until_idle(self, seconds: float = 3.0) -> None:
        """Wait until the process is nearly idle, because after its start it encodes words in the background."""
        for _ in range(20):
            before = self._cpu_seconds()
            time.sleep(seconds)
            if self._cpu_seconds() - before < 0.1 * seconds:
                return

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _children(self) -> list[str]:
        children = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since it was listed
                children += (task / "children").read_text().split()
        return children

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=TIMEOUT)


def made_image(rng: np.random.Generator) -> bytes:
    """Make a random JPEG of 700 x 500 pixels with smooth coloured fields."""
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((700, 500), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def work(user, number: int, end: float, thinking: float, times: dict[str, list], problems: list[str]) -> None:
    """Act as one user until `end`; append the time of each request to `times`, and each error to `problems`."""
    chance, rng = random.Random(number), np.random.default_rng(number)
    try:
        while time.monotonic() < end:
            name = f"user{number}.jpg"
            begun = time.monotonic()
            line = user.open(made_image(rng), name)
            times["open"].append(time.monotonic() - begun)
            if name not in line:
                problems.append(f"user {number}: opened {name}, and the page says {line!r}")
            for _ in range(4):
                time.sleep(chance.uniform(0.5, 1.5) * thinking)
                if time.monotonic() >= end and times["segment"]:
                    return
                words = [*chance.sample(WORDS, 5), f"thing of user {number}"]
                begun = time.monotonic()
                legend = user.segment(", ".join(words))
                times["segment"].append(time.monotonic() - begun)
                if sorted(legend) != sorted(words):
                    problems.append(f"user {number}: asked for {words}, and got {legend}")
    except Exception as error:
        problems.append(f"user {number}: {type(error).__name__}: {error}")


def crowd(client, address: str, users: int, seconds: float, thinking: float) -> tuple[dict[str, list], list[str]]:
    """Simulate `users` users at once; return the times per kind of request, and the problems."""
    times: dict[str, list] = {"open": [], "segment": []}
    problems: list[str] = []
    clients = [client(address) for _ in range(users)]
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=work, args=(user, number, end, thinking, times, problems))
        for number, user in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, problems


def run() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--users", type=int, default=20)
    p.add_argument("--seconds", type=float, default=120.0)
    p.add_argument(
        "--thinking",
        type=float,
        default=8.0,
        metavar="S",
        help="mean pause between two requests of a user, in seconds (default: 8)",
    )
    p.add_argument("--json", metavar="FILE", help="JSON file to which the results are also written")
    p.add_argument("options", nargs="*", help="options for demo/app.py, after two dashes")
    args = p.parse_args()
    server = Server(args.options)
    try:
        # Warm-up: with the first image, the page loads the files that it loads only once.
        crowd(PageUser, server.address, 2, 10, 0.1)
        server.wait_until_idle()
        before, load = server.memory(), os.getloadavg()[0]
        times, problems = crowd(PageUser, server.address, args.users, args.seconds, args.thinking)
        server.wait_until_idle()
        after = server.memory()
    finally:
        code = server.stop()
    figures = {"users": args.users, "seconds": args.seconds, "load_before": load, "exit_code": code}
    for name, values in times.items():
        p50, p95 = np.percentile(values, [50, 95]) if values else (float("nan"),) * 2
        figures[name] = {
            "requests": len(values),
            "p50_s": p50,
            "p95_s": p95,
            "max_s": max(values, default=float("nan")),
        }
    figures["memory_MiB"] = {"before": before["now"], "after": after["now"], "highest": after["highest"]}
    figures["problems"] = problems
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 1 if problems or code != 128 + signal.SIGTERM else 0


if __name__ == "__main__":
    sys.exit(run())
