#!/usr/bin/env bash
# Run the tests:   bash run_tests.sh [--all] [options of pytest]
# --all also runs the slow tests and ruff, but does not measure coverage, which takes a tenth of the time. The first run installs the requirements.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
python=$(sh tools/setup.sh)
"$python" -c "import pytest, pytest_cov, torchmetrics, rasterio, geopandas, ray, gradio, fastapi, uvicorn, playwright, nbclient, ipykernel, onnx, onnxscript, onnxruntime, openvino, faiss, skimage, sklearn, pyarrow, rioxarray, pystac, shtab, mkdocs, material, mkdocstrings" 2>/dev/null && command -v "$(dirname "$python")/ruff" >/dev/null || {
    echo "Installing the test tools ..." >&2
    "$python" -m pip install --quiet --disable-pip-version-check -e ".[test]" >&2
}
# PASSIVE: threads that wait actively slow down other processes on the same cores; without PASSIVE, tests with subprocesses took ten times
# as long.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
marks="not slow"
coverage="--cov --cov-append --cov-report="
lanes=1
if [ "${1:-}" = --all ]; then
    shift
    marks=""
    coverage=""
    # Processes that run tests at the same time. Two cannot write coverage data, and old versions of bash lack `wait -n`.
    if [ "${BASH_VERSINFO[0]}" -ge 5 ]; then
        lanes=2
        set -m # each process has a group of its own, and may be interrupted by Ctrl+C, as tests of the command line need
        trap 'for job in $(jobs -p); do kill -- -"$job" 2>/dev/null || true; done; exit 130' INT TERM
    fi
    "$python" -m ruff check .
    "$python" -m ruff format --check .
fi
if [ $# -gt 0 ]; then
    exec "$python" -m pytest -m "$marks" --cov --cov-report=term:skip-covered "$@"
fi
# Each folder of tests runs in its own process. When one process ran all tests, it ended with a SIGSEGV after 2,000 tests, while it waited
# for a child process (gdb shows wait4 and no invalid memory access). Probably the signal handler of one library used a signal stack that
# another library had removed.
run_part() { # a folder or a list of files
    local code=0
    echo "== ${1%% *}" >&2
    # shellcheck disable=SC2086  (the last part is a list of files; $coverage is a list of options)
    "$python" -m pytest -m "$marks" $coverage $1 || code=$?
    [ $code = 5 ] || return $code # pytest ends with 5 if a folder has no tests
}
run_beside() { # as run_part; the output is printed as a whole when the tests have ended
    local code=0 log
    log=$(mktemp)
    run_part "$1" >"$log" || code=$?
    cat "$log"
    rm "$log"
    return $code
}
status=0 running=0
rm -f .coverage
# shellcheck disable=SC2046  (names of folders have no spaces)
for part in tests/training/ $(ls -d tests/*/ | grep -v "training\|__pycache__") "$(echo tests/test_*.py)"; do # the longest first
    if [ $lanes = 1 ]; then
        run_part "$part" || status=$?
        continue
    fi
    if [ $running = $lanes ]; then
        wait -n || status=$?
        running=$((running - 1))
    fi
    run_beside "$part" &
    running=$((running + 1))
done
while [ $running -gt 0 ]; do
    wait -n || status=$?
    running=$((running - 1))
done
[ -z "$coverage" ] || "$python" -m coverage report --skip-covered
exit $status
