"""Call a function on each of many items: in this process, or on the workers of a Ray cluster.

Both ways have the same interface, `Each`, so a loop over images is written once. Importing this module does not import
torch, so wrong options are reported at once.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from skysense_o.errors import install_extra, message

M = TypeVar("M")
X = TypeVar("X")
Y = TypeVar("Y")
ATTEMPTS = 3
"""Number of attempts for an item whose worker is lost, that is, killed, out of memory, or gone with its machine."""
ANSWER = 10.0
"""Seconds to wait for the port of a cluster."""
OBJECT_STORE = 512 * 2**20
"""Size of Ray's object store in bytes; small, because processes read images and weights from files."""
LOST = f"its worker was lost {ATTEMPTS} times: killed, out of memory, or gone with its machine"


class Each(Protocol):
    """Interface of the functions that call a given function on each of many items; see `__call__`."""

    def __call__(
        self,
        function: Callable[[M, X], Y],
        items: Sequence[X],
        *,
        desc: str,
        unit: str = "image",
        lost: Callable[[X, str], Y] | None = None,
    ) -> Iterator[tuple[X, Y]]:
        """Yield each item and `function(model, item)`, in any order, and show a progress bar.

        Args:
            function: what it returns must be small; an error that it raises ends the loop.
            items: each is passed to `function` as its second argument.
            desc, unit: label and unit of the progress bar.
            lost: (item, reason) -> the result of an item whose worker is lost ATTEMPTS times; None: OSError is raised.
        """
        ...


def here(model: Any) -> Each:
    """Call functions in this process, item by item in their order.

    >>> dict(here(10)(lambda model, item: model * item, [1, 2], desc="doctest"))
    {1: 10, 2: 20}
    """

    from detectron2.utils import comm

    def each(function, items, *, desc, unit="image", lost=None):
        for item in tqdm(items, desc=desc, unit=unit, disable=not comm.is_main_process()):
            yield item, function(model, item)

    return each


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and how much of it to use.

    Attributes:
        address: "HOST:PORT", from a machine of the cluster; "ray://HOST:PORT", from any machine; "auto", the cluster
            that runs on this machine; or "local", which starts one here.
        workers: number of worker processes, each with a model. Those that the cluster has no room for join later.
        cpus, gpus: number of CPUs and GPUs per worker.
    """

    address: str = "local"
    workers: int = 2
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"local|auto|(ray://)?[^\s/:]+:\d+", self.address):
            raise ValueError(f"--address {self.address!r}: give HOST:PORT, ray://HOST:PORT, auto or local")
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers} is out of range: 1 or more")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"--cpus {self.cpus} --gpus {self.gpus} is out of range: --cpus above 0, --gpus 0 or more")

    @contextmanager
    def each(self, load: Callable[[], Any]) -> Iterator[Each]:
        """Context manager that connects to the cluster and yields an `Each`, whose calls run on the workers.

        Each worker calls `load` once and keeps the model that it returns. The context ends the connection.

        Functions and their arguments are pickled, so they must be importable on all machines. Workers run in the folder
        of this process, which must be there on all machines, so that relative paths mean the same.

        Args:
            load: returns the model.

        Raises:
            ModuleNotFoundError: Ray is not installed.
            OSError: the address does not answer.
            ValueError: the cluster has no room for a worker.
        """
        with redirect_stdout(sys.stderr):  # Ray prints messages about lost workers
            ray = self._connect()
            try:
                yield _Pool(ray, self, load).each
            finally:
                ray.shutdown()

    def _connect(self):
        """Connect to the cluster -> the module `ray`."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            missing = f"--address and --workers need ray, which is not installed: {install_extra('archive')}"
            raise ModuleNotFoundError(missing, name=error.name) from error
        local = {}
        if self.address == "local":
            local = {"num_cpus": math.ceil(self.workers * self.cpus), "object_store_memory": OBJECT_STORE}
            local["include_dashboard"] = False
        try:
            if ":" in self.address:  # check the port first, because Ray itself would try for two minutes
                host, port = self.address.removeprefix("ray://").split(":")
                socket.create_connection((host, int(port)), timeout=ANSWER).close()
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (Exception, SystemExit) as error:  # Ray exits if the port is not one of Ray
            raise OSError(
                f"--address {self.address!r} does not answer as a Ray cluster ({message(error)}): is it running"
                " (ray start --head), and does it have the same versions of Ray and Python?"
            ) from error
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(r.get("CPU", 0) >= self.cpus and r.get("GPU", 0) >= self.gpus for r in resources):
            ray.shutdown()
            has = ", ".join(f"{r.get('CPU', 0):g} CPUs and {r.get('GPU', 0):g} GPUs" for r in resources)
            raise ValueError(
                f"--cpus {self.cpus:g} --gpus {self.gpus:g}: no machine of the cluster has them for one worker; its"
                f" machines have {has}"
            )
        return ray


class _Worker:
    """One process of the cluster, as a Ray actor."""

    def __init__(self, load: Callable[[], Any], folder: str, variables: dict[str, str], threads: int) -> None:
        self.load, self.folder, self.variables, self.threads = load, folder, variables, threads

    def start(self) -> None:
        if not os.path.isdir(self.folder):
            raise FileNotFoundError(
                f"{self.folder} is not there on {socket.gethostname()}: all machines of the cluster must have the"
                " folder of this command, the weights and the images under the same paths"
            )
        os.chdir(self.folder)
        os.environ.update(self.variables)
        self.model = self.load()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)

    def call(self, function: Callable[[Any, X], Y], item: X) -> Y:
        return function(self.model, item)


class _Pool:
    """The workers of one command. Only workers that have started get items, so no item waits for a lost machine."""

    def __init__(self, ray, cluster: Cluster, load: Callable[[], Any]) -> None:
        self.ray = ray
        self.actor = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus)(_Worker)
        variables = {k: v for k, v in os.environ.items() if k.startswith("SKYSENSE_O_") or k == "DETECTRON2_DATASETS"}
        self.arguments = load, os.getcwd(), variables, max(1, int(cluster.cpus))
        self.idle: list = []
        self.busy: dict = {}  # reference of a call -> the worker, its item or None while it starts, the attempt
        for _ in range(cluster.workers):
            self._start(1)

    def _start(self, attempt: int) -> None:
        worker = self.actor.remote(*self.arguments)
        self.busy[worker.start.remote()] = worker, None, attempt

    def each(self, function, items, *, desc, unit="image", lost=None):
        """Call a function on each item, on the workers of this pool; see `Each`."""
        ray, function = self.ray, self.ray.put(function)
        waiting, left = deque(((item,), 1) for item in items), len(items)  # in tuples, because an item may be None
        with tqdm(total=left, desc=desc, unit=unit) as bar:
            while left:
                while waiting and self.idle:
                    worker, (item, attempt) = self.idle.pop(), waiting.popleft()
                    self.busy[worker.call.remote(function, *item)] = worker, item, attempt
                (call,), _ = ray.wait(list(self.busy))
                worker, item, attempt = self.busy.pop(call)
                try:
                    result = ray.get(call)
                    self.idle.append(worker)
                except ray.exceptions.RayTaskError as error:  # the function raised an error
                    raise error.cause or OSError(message(error)) from error
                except ray.exceptions.RayError as error:  # the worker is lost
                    ray.kill(worker)
                    self._start(1 if item else attempt + 1)
                    if item and attempt < ATTEMPTS:
                        waiting.appendleft((item, attempt + 1))
                    if attempt < ATTEMPTS:
                        continue
                    if not item:
                        raise OSError(f"a worker of the Ray cluster does not start: {message(error)}") from error
                    if not lost:
                        raise OSError(f"{desc}: {item[0]!r}: {LOST}") from error
                    result = lost(*item, LOST)
                if item:
                    left -= 1
                    bar.update()
                    yield *item, result
