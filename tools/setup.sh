#!/bin/sh
# Install what the other scripts need, and print the path of the Python to use. This is the Python of the active environment or, if none
# is active, of .venv, which this script then creates.
#
#   python=$(sh tools/setup.sh)
#
# A stamp file in the environment records what was installed, so later runs install nothing.
set -eu
cd "$(dirname "$0")/.."

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    python=$(command -v python || command -v python3)
    fits "$python" || { echo "error: the active environment has $("$python" --version); 3.10 to 3.12 is needed" >&2; exit 2; }
else
    if [ ! -x .venv/bin/python ] || [ ! -e .venv/bin/activate ]; then
        base=
        for candidate in python3 python3.12 python3.11 python3.10 python; do
            if fits "$candidate"; then base=$candidate; break; fi
        done
        [ -n "$base" ] || { echo "error: no Python 3.10 to 3.12 on the PATH (on Debian 12: apt-get install python3-venv)" >&2; exit 2; }
        echo "Making .venv with $("$base" --version) ..." >&2
        "$base" -m venv .venv >&2 || {
            rm -rf .venv
            echo "error: no virtual environment could be made; on Debian: apt-get install python3-venv" >&2
            exit 2
        }
    fi
    python=$PWD/.venv/bin/python
fi

stamp=$("$python" -c 'import sys; print(sys.prefix)')/.skysense_o_installed
want=$(cat require.txt require-nodeps.txt require-detectron2.txt pyproject.toml tools/install_detectron2.sh | cksum; pwd)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    echo "Installing what require.txt lists (a few minutes, about 6 GB; $free GiB are free here) ..." >&2
    [ "$free" -ge 12 ] || echo "warning: the download and the installation together may need 12 GiB of free disk" >&2
    "$python" -m pip install --quiet --disable-pip-version-check -r require.txt >&2
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -r require-nodeps.txt >&2
    sh tools/install_detectron2.sh "$python" >&2
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -e . >&2
    printf '%s\n' "$want" >"$stamp"
fi
echo "$python"
