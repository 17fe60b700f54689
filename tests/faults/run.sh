#!/bin/sh
# Run all fault tests: malformed inputs, kills, full disks (real ones only as root), limits, 20 simulated users for two minutes, and
# fuzzing with new seeds.
#   bash tests/faults/run.sh [minutes of fuzzing, default 60] [first seed, default: the date]
set -eu
cd "$(dirname "$0")/../.."
python=$(sh tools/setup.sh)
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
"$python" -m pytest -m faults
"$python" tests/faults/crowd.py
"$python" tests/faults/fuzz_more.py --minutes "${1:-60}" --seed "${2:-$(date +%Y%m%d)}"
