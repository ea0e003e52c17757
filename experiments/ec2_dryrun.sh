#!/usr/bin/env bash
# Phase 3's dry run on the target instance: an epoch of ImageNet or of a part of it, killed and resumed once. `--help` says the rest.
set -euo pipefail

usage() {
    cat <<'TEXT'
ec2_dryrun.sh: one epoch on the real data before the full training: card, loader, checkpoint, a kill, a resume, an evaluation.

    DATA_DIR=/data/imagenet experiments/ec2_dryrun.sh [--config FILE] [--limit IMAGES] [--engine PATH] [-- engine train's arguments]

  --config FILE    the recipe (default: configs/resnet50-90-nvidia.toml)
  --limit IMAGES   of the training images, that many of a fixed shuffle (default: 20000; 0: all)
  --engine PATH    a built binary (default: target/release/engine)
  --kill-after S   seconds after which the first try is killed with SIGKILL (default: 60)
  --help           this text

OUTPUT_DIR   where it goes (default: runs/ec2_dryrun). Exit codes: 0 all of it worked, 1 something did not, 2 wrong command line.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
config=$root/configs/resnet50-90-nvidia.toml limit=20000 engine=$root/target/release/engine kill_after=60
while [ $# -gt 0 ]; do
    case $1 in
    --config | --limit | --engine | --kill-after)
        [ $# -ge 2 ] || { echo "ec2_dryrun.sh: $1 wants a value" >&2; exit 2; }
        case $1 in
        --config) config=$2 ;;
        --limit) limit=$2 ;;
        --engine) engine=$2 ;;
        --kill-after) kill_after=$2 ;;
        esac
        shift 2
        ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "ec2_dryrun.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done
[ -n "${DATA_DIR:-}" ] || { echo "ec2_dryrun.sh: DATA_DIR is not set: where is ImageNet?" >&2; exit 2; }
[ -e "$DATA_DIR" ] || { echo "ec2_dryrun.sh: DATA_DIR=$DATA_DIR: no such folder; datasets/sync_to_ec2.sh brings one" >&2; exit 2; }
[ -x "$engine" ] || { echo "ec2_dryrun.sh: $engine: no such program; cargo build --release, or give --engine" >&2; exit 2; }
export OUTPUT_DIR=${OUTPUT_DIR:-$root/runs/ec2_dryrun}
[ ! -e "$OUTPUT_DIR/checkpoints/last.safetensors" ] ||
    { echo "ec2_dryrun.sh: $OUTPUT_DIR holds a run already; move it away or set OUTPUT_DIR" >&2; exit 2; }
mkdir -p "$OUTPUT_DIR"

step() { printf '\n== %s\n' "$*"; }
# No function: what is killed below has to be the program itself, not a shell that waits for it.
train=("$engine" train --config "$config" --set epochs=1 --set "data.limit=$limit" --set checkpoint.every_minutes=0.25 "$@")

step "machine"
"$engine" doctor --output "$OUTPUT_DIR" || true
step "loader alone, all cores"
"$engine" bench loader --data "$DATA_DIR" --seconds 10

step "training, to be killed after $kill_after s"
"${train[@]}" &
pid=$!
sleep "$kill_after"
if kill -KILL "$pid" 2>/dev/null; then
    wait "$pid" || true
    echo "killed"
else
    wait "$pid" || exit 1
    echo "it had finished before: give a larger --limit or a shorter --kill-after to see a resume"
fi
ls -l "$OUTPUT_DIR/checkpoints" 2>/dev/null || echo "no checkpoint was written before the kill: the resume begins anew"

step "the same command again"
"${train[@]}"

step "evaluation of the checkpoint"
"$engine" eval --checkpoint "$OUTPUT_DIR/checkpoints/last.safetensors" --data "$DATA_DIR"

step "$OUTPUT_DIR/logs.md"
grep '^epoch: ' "$OUTPUT_DIR/logs.md"
[ "$(grep -c '^epoch: 1 ' "$OUTPUT_DIR/logs.md")" = 1 ] ||
    { echo "ec2_dryrun.sh: epoch 1 stands there more than once, or not at all" >&2; exit 1; }
echo "The dry run worked. Take the screenshot with experiments/ec2_screenshot.sh while the full training runs."
