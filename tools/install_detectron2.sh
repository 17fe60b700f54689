#!/bin/sh
# Install Detectron2 into the given Python's environment, unless a working one is installed.
#
#   sh tools/install_detectron2.sh [PYTHON]
#
# Detectron2 is not on PyPI under its own name. The wheel named in require-detectron2.txt contains its main branch of
# 2024-04-17. Its Python code runs on 3.10 to 3.12. Its compiled operators, built for another torch, are not needed here.
# If you need them, build Detectron2 from source first (see README); this script keeps an existing installation.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}

if "$python" -c "import detectron2.modeling" 2>/dev/null; then
    exit 0
fi
site=$("$python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
had_tools=no
[ -e "$site/tools" ] && had_tools=yes
"$python" -m pip install --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.10 \
    --target "$site" --require-hashes -r require-detectron2.txt
# The wheel also contains a top-level package "tools", which would shadow this project's.
[ "$had_tools" = yes ] || rm -rf "$site/tools"
"$python" -c "import detectron2.modeling"
