#!/bin/sh
# Train a model:   bash run_train.sh CONFIG NUM_GPUS OUTPUT_DIR [--resume] [KEY VALUE ...]
set -eu
if [ $# -lt 3 ]; then
    echo "usage: bash run_train.sh CONFIG NUM_GPUS OUTPUT_DIR [--resume] [KEY VALUE ...]" >&2
    echo "e.g.:  bash run_train.sh configs/mini/finetune.yaml 1 output/mini SOLVER.MAX_ITER 100" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
python=$(sh "$here/tools/setup.sh")
config=$1 gpus=$2 output=$3
shift 3
resume=
[ "${1:-}" = --resume ] && resume=--resume && shift
exec "$python" "$here/tools/train_net.py" --config-file "$config" --num-gpus "$gpus" $resume OUTPUT_DIR "$output" "$@"
