#!/bin/sh
# Segment an image:   bash demo.sh [IMAGE [WORDS [more options of demo/demo.py]]]
# Without arguments it segments the shipped image. The first run installs the requirements.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=$(sh "$here/tools/setup.sh")
image=${1:-$here/demo/yellowstone_0.4m.jpg}
words=${2:-road,vegetation}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] && shift
export HF_HUB_OFFLINE=1
exec "$python" "$here/demo/demo.py" --input "$image" --classes "$words" --output "${OUTPUT:-output/demo}" "$@"
