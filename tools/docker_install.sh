#!/bin/sh
# The Dockerfile's install step: make a virtual environment with this package, the web page, and what PyPI does not list.
#
#   sh tools/docker_install.sh SOURCE TARGET [cpu|cuda]
#
# cpu installs torch without CUDA from PyTorch's own index; cuda installs torch from PyPI.
set -eu
source=$1 target=$2 torch=${3:-cpu}
case $torch in
cpu) index="--index-url https://download.pytorch.org/whl/cpu" ;;
cuda) index= ;;
*) echo "error: TORCH $torch is not known: cpu or cuda" >&2; exit 2 ;;
esac
python3 -m venv "$target"
pip="$target/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check"
# shellcheck disable=SC2086  # these are lists of words
$pip $index $(sed -n 's/^\(torch\(vision\)\{0,1\}==[^ ]*\).*/\1/p' "$source/require.txt")
$pip "$source[app,completion]"
"$target/bin/skysense-o" doctor --install
