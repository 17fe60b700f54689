#!/bin/sh
# Recompute the numbers of the shipped weights on the available data sets, and compare them with RESULTS.md.
#
#   DETECTRON2_DATASETS=/where/your/data/is bash tools/reproduce.sh OUTPUT_DIR
#
# The script takes some minutes on two cores. If it is run again, finished evaluations are not repeated. Missing data sets are listed and
# skipped.
set -eu
out=${1:?usage: bash tools/reproduce.sh OUTPUT_DIR}
here=$(cd "$(dirname "$0")/.." && pwd)
python=$(sh "$here/tools/setup.sh")
mini="$here/configs/mini/finetune.yaml"

sh "$here/run_eval.sh" "$mini" 1 "$out/all" MODEL.WEIGHTS mini MODEL.VQA.WEIGHTS mini_vqa DATASETS.TEST all
if [ -d "${DETECTRON2_DATASETS:-$here/datasets}/dubai" ]; then
    sh "$here/run_eval.sh" "$mini" 1 "$out/scenes" MODEL.WEIGHTS mini DATASETS.TEST "('dubai_scene5','dubai_scene6')"
    sh "$here/run_eval.sh" "$mini" 1 "$out/heldout" MODEL.WEIGHTS mini DATASETS.TEST "('dubai_val',)" \
        TEST.WORDS heldout TEST.HELDOUT_FILE "$here/tests/reference/heldout_words.json"
    sh "$here/run_eval.sh" "$here/configs/mini/corrections.yaml" 1 "$out/prompts" MODEL.WEIGHTS mini DATASETS.TEST "('dubai_val',)"
fi
if [ -d "${DETECTRON2_DATASETS:-$here/datasets}/eurosat" ]; then  # with synonyms, averaged over the eight symmetries of each image
    sh "$here/run_eval.sh" "$mini" 1 "$out/phrases" MODEL.WEIGHTS mini MODEL.VQA.WEIGHTS mini_vqa \
        DATASETS.TEST "('eurosat_all','resisc12_test','rsicd_scenes_test')" TEST.WORDS synonyms TEST.FLIPS True
fi
[ -s "$out/words/results.json" ] || "$python" "$here/tools/evaluate_words.py" mini --output "$out/words"
"$python" "$here/tools/compare_results.py" "$out"
