#!/bin/sh
# Segment an image:   bash demo.sh [IMAGE [CLASSES [more options of demo/demo.py]]]
# Without arguments, the shipped image demo/yellowstone_0.15m.jpg is segmented. The first run installs the requirements.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
-h | --help) # this option installs nothing
    sed -n '2,3s/^# //p' "$0"
    python=$here/.venv/bin/python
    [ -x "$python" ] || python=python3
    "$python" "$here/demo/demo.py" --help 2>/dev/null || echo "After the first run, --help also lists the options."
    exit 0
    ;;
esac
python=$(sh "$here/tools/setup.sh")
image=${1:-$here/demo/yellowstone_0.15m.jpg}
classes=${2:-road,tree,grass,building,water,car}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] && shift
export HF_HUB_OFFLINE=1
exec "$python" "$here/demo/demo.py" --input "$image" --classes "$classes" --output "${OUTPUT:-output/demo}" "$@"
