#!/bin/sh
# Install Detectron2 into the given Python's environment, unless a working one is installed.
#
#   sh tools/install_detectron2.sh [PYTHON]
#
# skysense_o/cli/unlisted.py does the installation. If you need the compiled operators of Detectron2, build Detectron2 from source before
# you run this script (docs/install.md); the script keeps an existing installation.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}

"$python" -c "from skysense_o.cli.unlisted import install_detectron2; install_detectron2()"
"$python" -c "import detectron2.modeling"
