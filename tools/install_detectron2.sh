#!/bin/sh
# Install Detectron2 into the given Python's environment, unless a working one is installed.
#
#   sh tools/install_detectron2.sh [PYTHON]
#
# See skysense_o/cli/unlisted.py. If you need Detectron2's compiled operators, build it from source first
# (docs/install.md); this script keeps an existing installation.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c "from skysense_o.cli.unlisted import install_detectron2; install_detectron2()"
"$python" -c "import detectron2.modeling"
