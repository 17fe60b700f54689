#!/usr/bin/env python
"""Fuzz all readers with new seeds for a given time; print the seeds and tests that failed, and the number of inputs.

python tests/faults/fuzz_more.py --minutes 60 --seed 1
SKYSENSE_O_SEED=17 python -m pytest tests/faults/test_fuzz.py -k short     # repeats one seed
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--minutes", type=float, default=60.0, help="do not start a new round after this many minutes (default: 60)"
    )
    p.add_argument("--seed", type=int, default=1, help="seed of the first round; each later round adds 1 (default: 1)")
    args = p.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/helpers"), str(ROOT / "tests/faults")]
    from test_fuzz import SHORT

    begun, seed, failed, passed = time.monotonic(), args.seed, 0, 0
    words = ["-m", "pytest", "tests/faults/test_fuzz.py", "-k", "short", "-p", "no:cacheprovider"]
    while time.monotonic() - begun < 60 * args.minutes:
        environment = {**os.environ, "SKYSENSE_O_SEED": str(seed), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.M)
        counted = re.search(r"(\d+) passed", done.stdout)
        passed += int(counted.group(1)) if counted else 0
        failed += len(lines)
        minutes = (time.monotonic() - begun) / 60
        print(f"seed {seed}: {len(lines)} findings; {minutes:.1f} minutes, {SHORT * passed:,} inputs", flush=True)
        print("\n".join(lines), end="\n" if lines else "", flush=True)
        if done.returncode not in (0, 1):
            print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
            return 2
        seed += 1
    print(f"{seed - args.seed} seeds, {SHORT * (passed + failed):,} inputs, {failed} findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run())
