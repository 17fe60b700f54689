#!/bin/sh
# The Dockerfile calls this script to make a virtual environment with this package, the requirements of the web page, Detectron2 and
# MiniLM.
#
#   sh tools/docker_install.sh SOURCE TARGET [cpu|cuda]
#
# cpu installs torch without CUDA from PyTorch's own index; cuda installs torch from PyPI.
set -eu
source=$1 target=$2 torch=${3:-cpu}
case $torch in
cpu) index=https://download.pytorch.org/whl/cpu ;;
cuda) index= ;;
*) echo "error: TORCH $torch is not known: cpu or cuda" >&2; exit 2 ;;
esac
python3 -m venv "$target"
pip="$target/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check"
# shellcheck disable=SC2086,SC2046  # the values of $pip and of sed are lists of words
if ! $pip ${index:+--index-url $index} $(sed -n 's/^\(torch\(vision\)\{0,1\}==[^ ]*\).*/\1/p' "$source/require.txt"); then
    echo "error: torch was not installed from ${index:-PyPI}: pip says above why" >&2
    [ -z "$index" ] || echo "If $index cannot be reached, build with --build-arg TORCH=cuda:" \
        "it takes torch from PyPI, and the image runs on CPUs too, but has 6 GB" >&2
    exit 1
fi
$pip "$source[app,completion]"
"$target/bin/skysense-o" doctor --install
