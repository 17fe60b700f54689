#!/bin/sh
# Run the tests:   bash run_tests.sh [--all] [options of pytest]
# --all also runs the slow tests and ruff. The first run installs the requirements.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
python=$(sh tools/setup.sh)
"$python" -c "import pytest, pytest_cov, torchmetrics, rasterio, geopandas, ray, gradio, fastapi, uvicorn, playwright, nbclient, ipykernel, onnx, onnxscript, onnxruntime, openvino, faiss, skimage, sklearn, pyarrow, rioxarray, pystac, shtab, mkdocs, material, mkdocstrings" 2>/dev/null && command -v "$(dirname "$python")/ruff" >/dev/null || {
    echo "Installing the test tools ..." >&2
    "$python" -m pip install --quiet --disable-pip-version-check -e ".[test]" >&2
}
# PASSIVE: spinning threads slow down other processes on the same cores; without it, tests with subprocesses took ten times as long.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
marks="not slow"
if [ "${1:-}" = --all ]; then
    shift
    marks=""
    "$python" -m ruff check .
    "$python" -m ruff format --check .
fi
if [ $# -gt 0 ]; then
    exec "$python" -m pytest -m "$marks" --cov --cov-report=term:skip-covered "$@"
fi
# Each folder of tests has its own process. In a single process for all, a SIGSEGV came after 2,000 tests while it waited for a child
# (gdb: in wait4, no bad access): one library's signal handler, probably, on a signal stack that another library had taken away.
status=0
rm -f .coverage
for part in tests/*/ "$(echo tests/test_*.py)"; do
    case $part in *__pycache__*) continue ;; esac
    echo "== ${part%% *}" >&2
    # shellcheck disable=SC2086  (the last part is a list of files)
    "$python" -m pytest -m "$marks" --cov --cov-append --cov-report= $part || {
        code=$?
        [ $code = 5 ] || status=$code # 5: a folder of helpers has no tests
    }
done
"$python" -m coverage report --skip-covered
exit $status
