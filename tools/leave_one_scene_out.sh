#!/bin/sh
# Leave-one-out over the seven scenes of Dubai: train on six scenes and test on the seventh, for each scene. Print the mIoU of each scene,
# their mean and their standard deviation.
#
#   sh tools/leave_one_scene_out.sh CONFIG OUTPUT_DIR [KEY VALUE ...]
set -eu
if [ $# -lt 2 ]; then
    echo "usage: sh tools/leave_one_scene_out.sh CONFIG OUTPUT_DIR [KEY VALUE ...]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
config=$1 output=$2
shift 2
for scene in 1 2 3 4 5 6 8; do
    [ -f "$output/scene$scene/model_final.pth" ] || sh "$here/run_train.sh" "$config" 1 "$output/scene$scene" \
        DATASETS.TRAIN "('dubai_without_scene$scene',)" DATASETS.TEST "('dubai_scene$scene',)" TEST.EVAL_PERIOD 0 "$@"
done
"$(sh "$here/tools/setup.sh")" - "$output" <<'PYTHON'
import json, statistics, sys

scores = {}
for scene in (1, 2, 3, 4, 5, 6, 8):
    with open(f"{sys.argv[1]}/scene{scene}/inference/dubai_scene{scene}.json") as file:
        scores[scene] = json.load(file)["results"]["names"]["mIoU"]
print("scene  mIoU")
for scene, score in scores.items():
    print(f"{scene:5}  {score:.4f}")
print(f" mean  {statistics.mean(scores.values()):.4f}, standard deviation {statistics.stdev(scores.values()):.4f}")
PYTHON
