#!/bin/sh
# Evaluate weights:   bash run_eval.sh CONFIG NUM_GPUS OUTPUT_DIR [--address A] [KEY VALUE ...]
set -eu
if [ $# -lt 3 ]; then
    echo "usage: bash run_eval.sh CONFIG NUM_GPUS OUTPUT_DIR [--address A] [KEY VALUE ...]" >&2
    echo "e.g.:  bash run_eval.sh configs/mini/finetune.yaml 1 output/mini MODEL.WEIGHTS mini" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
python=$(sh "$here/tools/setup.sh")
config=$1 gpus=$2 output=$3
shift 3
exec "$python" "$here/tools/train_net.py" --config-file "$config" --num-gpus "$gpus" --eval-only "$@" OUTPUT_DIR "$output"
