#!/bin/sh
# Does pretraining help, and do the three losses? The mini tower on UC Merced's captions, then on Dubai, three seeds.
#   DETECTRON2_DATASETS=../shared/data sh tools/experiments/pretrain_and_finetune.sh output/experiment
# What is done already is not done again; the numbers are in the metrics.json of each folder.
set -eu
out=${1:?usage: sh tools/experiments/pretrain_and_finetune.sh OUTPUT_DIR}
here=$(cd "$(dirname "$0")/../.." && pwd)
python=$(sh "$here/tools/setup.sh")

run() {  # folder, config, KEY VALUE ...
    folder=$1 config=$2
    shift 2
    [ -f "$folder/model_final.pth" ] || "$python" "$here/tools/train_net.py" --config-file "$here/configs/$config" OUTPUT_DIR "$folder" "$@"
}

# The untrained and the ImageNet-only tower: no step that changes anything, then the evaluation.
run "$out/untrained" pretrain/mini.yaml MODEL.TOWER.PRETRAINED False SOLVER.MAX_ITER 1 SOLVER.BASE_LR 0.0
run "$out/imagenet" pretrain/mini.yaml SOLVER.MAX_ITER 1 SOLVER.BASE_LR 0.0
run "$out/pretrained" pretrain/mini.yaml

for seed in 0 1 2; do
    for start in imagenet pretrained; do
        weights=""
        [ $start = pretrained ] && weights="$out/pretrained/model_final.safetensors"
        common="SEED $seed MODEL.WEIGHTS $weights"
        [ -n "$weights" ] || common="SEED $seed"
        # shellcheck disable=SC2086
        run "$out/one_${start}_$seed" mini/finetune_pretrained.yaml $common MODEL.LOSS.REGION 0.0 MODEL.LOSS.VISION_CENTRIC 0.0
        run "$out/two_${start}_$seed" mini/finetune_pretrained.yaml $common MODEL.LOSS.REGION 0.4 MODEL.LOSS.VISION_CENTRIC 0.0
        run "$out/three_${start}_$seed" mini/finetune_pretrained.yaml $common MODEL.LOSS.REGION 0.4 MODEL.LOSS.VISION_CENTRIC 0.4
    done
done
"$python" "$here/tools/experiments/table.py" "$out"
