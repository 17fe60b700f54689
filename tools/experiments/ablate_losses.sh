#!/bin/sh
# Measure what the region loss, and with it the vision-centric loss and relation graph sampling, add to mixed training (3 seeds).
#   DETECTRON2_DATASETS=../shared/data sh tools/experiments/ablate_losses.sh output/ablation [STEPS: 110]
# Finished trainings and evaluations are not repeated, and a stopped training is resumed. Each seed is finished before the next one
# starts, so that the variants can be compared at any time. A table is printed at the end.
set -eu
out=${1:?usage: sh tools/experiments/ablate_losses.sh OUTPUT_DIR [STEPS]}
steps=${2:-110}
here=$(cd "$(dirname "$0")/../.." && pwd)
python=$(sh "$here/tools/setup.sh")
config=$here/configs/mini/ablation.yaml

run() {  # arguments: name of the variant, seed, KEY VALUE ...
    folder=$out/$1_$2 seed=$2
    shift 2
    weights=$folder/model_final.safetensors resume=
    [ -f "$folder/last_checkpoint" ] && resume=--resume
    # shellcheck disable=SC2086
    [ -f "$weights" ] || "$python" "$here/tools/train_net.py" --config-file "$config" $resume \
        OUTPUT_DIR "$folder" SEED "$seed" SOLVER.MAX_ITER "$steps" "$@"
    evaluate names DATASETS.TEST "('dubai_val', 'czech_landcover_val')"
    evaluate heldout DATASETS.TEST "('dubai_val',)" TEST.WORDS heldout TEST.HELDOUT_FILE "$here/tests/reference/heldout_words.json"
    [ -f "$folder/words/results.json" ] || "$python" "$here/tools/evaluate_words.py" "$weights" --only buildings --output "$folder/words"
}

evaluate() {  # arguments: name of the folder for the results, KEY VALUE ...
    results=$folder/$1
    shift
    [ -f "$results/results.json" ] || "$python" "$here/tools/train_net.py" --config-file "$config" --eval-only \
        MODEL.WEIGHTS "$weights" OUTPUT_DIR "$results" "$@"
}

for seed in 0 1 2; do
    run pixel $seed
    run region $seed MODEL.LOSS.REGION 0.3
    run vision_centric $seed MODEL.LOSS.REGION 0.3 MODEL.LOSS.VISION_CENTRIC 0.4 INPUT.GRAPH "$here/datasets/concept_graph.json"
done
"$python" "$here/tools/experiments/table.py" "$out"
