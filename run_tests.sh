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
if [ "${1:-}" = --all ]; then
    shift
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    exec "$python" -m pytest --cov --cov-report=term:skip-covered "$@"
fi
exec "$python" -m pytest -m "not slow" --cov --cov-report=term:skip-covered "$@"
