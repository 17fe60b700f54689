#!/bin/sh
# Measure the effects of pretraining and of one, two or three losses: the mini tower is pretrained on UC Merced, and the mini model is
# fine-tuned on Dubai with 3 seeds.
#   DETECTRON2_DATASETS=../shared/data sh tools/experiments/pretrain_and_finetune.sh output/experiment [STEPS on Dubai: 100]
# Finished trainings are not repeated. The metrics.json in each folder has the numbers of a training, and a table is printed at the end.
set -eu
out=${1:?usage: sh tools/experiments/pretrain_and_finetune.sh OUTPUT_DIR [STEPS]}
steps=${2:-100}
here=$(cd "$(dirname "$0")/../.." && pwd)
python=$(sh "$here/tools/setup.sh")

run() {  # arguments: folder, config, KEY VALUE ...
    folder=$1 config=$2
    shift 2
    [ -f "$folder/model_final.pth" ] || "$python" "$here/tools/train_net.py" --config-file "$here/configs/$config" OUTPUT_DIR "$folder" "$@"
}

# To evaluate a tower with random weights and one with ImageNet weights, train each for one step with a learning rate near 0.
nothing="SOLVER.MAX_ITER 1 SOLVER.BASE_LR 1e-12 SOLVER.IMS_PER_BATCH 2"
# shellcheck disable=SC2086
run "$out/untrained" pretrain/mini.yaml MODEL.TOWER.PRETRAINED False $nothing
# shellcheck disable=SC2086
run "$out/imagenet" pretrain/mini.yaml $nothing
run "$out/pretrained" pretrain/mini.yaml

for seed in 0 1 2; do
    common="SEED $seed SOLVER.MAX_ITER $steps TEST.EVAL_PERIOD 0"
    weights="MODEL.WEIGHTS $out/pretrained/model_final.safetensors"
    # shellcheck disable=SC2086
    run "$out/imagenet_one_loss_$seed" mini/finetune_pretrained.yaml $common MODEL.LOSS.REGION 0.0
    # shellcheck disable=SC2086
    run "$out/one_loss_$seed" mini/finetune_pretrained.yaml $common $weights MODEL.LOSS.REGION 0.0
    # shellcheck disable=SC2086
    run "$out/two_losses_$seed" mini/finetune_pretrained.yaml $common $weights MODEL.LOSS.REGION 0.4
    # shellcheck disable=SC2086
    run "$out/three_losses_$seed" mini/finetune_pretrained.yaml $common $weights MODEL.LOSS.REGION 0.4 MODEL.LOSS.VISION_CENTRIC 0.4
done
"$python" "$here/tools/experiments/table.py" "$out"
