"""Options of the commands that can run on a Ray cluster."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skysense_o.workers import Cluster


def add_cluster_arguments(p: ArgumentParser, default: str = "this process alone") -> None:
    """Add --address, --workers, --cpus and --gpus.

    Args:
        default: where the command runs without these options; part of the help text.
    """
    p.add_argument(
        "--address",
        metavar="A",
        help="a Ray cluster: HOST:PORT, ray://HOST:PORT, auto (the one on this machine), or local to start one here"
        f" (default: {default})",
    )
    p.add_argument("--workers", type=int, metavar="N", help="worker processes of Ray (default with --address: 2)")
    p.add_argument("--cpus", type=float, default=1.0, metavar="N", help="CPU cores per worker (default: 1)")
    p.add_argument("--gpus", type=float, default=0.0, metavar="N", help="GPUs per worker (default: 0)")


def cluster_of(args: Namespace) -> Cluster | None:
    """The cluster that the options name; None without --address and --workers.

    Raises:
        ValueError: an option is out of range.
    """
    if args.address is None and args.workers is None:
        return None
    from skysense_o.workers import Cluster

    return Cluster(args.address or "local", 2 if args.workers is None else args.workers, args.cpus, args.gpus)
