#!/usr/bin/env bash
# Before a dollar is spent: published weights must score on your copy of ImageNet what was published. `--help` says the rest.
set -euo pipefail

usage() {
    cat <<'TEXT'
verify_imagenet.sh: torchvision's published ResNet-50 weights through `engine eval`: V1 must give 76.13 and V2 80.858 (at 224 px,
resized to 256 and 232), within 0.05 points. If they do not, data, labels or preprocessing are wrong, and so would be a training.

    experiments/verify_imagenet.sh --data DIR --v1 FILE [--v2 FILE] [--engine PATH]

  --data DIR      ImageNet with val/ (50,000 images), or $DATA_DIR
  --v1 FILE       resnet50-0676ba61.pth, from https://download.pytorch.org/models/
  --v2 FILE       resnet50-11ad3fa6.pth, from the same place
  --engine PATH   a built binary (default: target/release/engine)
  --help          this text

Exit codes: 0 both are right, 1 one is not, 2 wrong command line.
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
data=${DATA_DIR:-} v1='' v2='' engine=$root/target/release/engine
while [ $# -gt 0 ]; do
    case $1 in
    --data | --v1 | --v2 | --engine)
        [ $# -ge 2 ] || { echo "verify_imagenet.sh: $1 wants a value" >&2; exit 2; }
        case $1 in --data) data=$2 ;; --v1) v1=$2 ;; --v2) v2=$2 ;; --engine) engine=$2 ;; esac
        shift 2
        ;;
    --help | -h) usage; exit 0 ;;
    *) echo "verify_imagenet.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done
[ -n "$data" ] || { echo "verify_imagenet.sh: give --data DIR or set DATA_DIR" >&2; exit 2; }
[ -n "$v1$v2" ] || { echo "verify_imagenet.sh: give --v1 FILE or --v2 FILE; see --help" >&2; exit 2; }
[ -x "$engine" ] || { echo "verify_imagenet.sh: $engine: no such program; cargo build --release, or give --engine" >&2; exit 2; }
wrong=0

# score NAME FILE CROP_RATIO PUBLISHED
score() {
    local json top1
    [ -f "$2" ] || { echo "verify_imagenet.sh: $2: no such file" >&2; exit 2; }
    json=$("$engine" eval --checkpoint "$2" --data "$data" --resolution 224 --crop-ratio "$3" --json) || exit 1
    top1=$(printf '%s' "$json" | sed -n 's/.*"val_top1":\([0-9.]*\).*/\1/p')
    awk -v name="$1" -v got="$top1" -v want="$4" 'BEGIN {
        off = got - want; if (off < 0) off = -off
        printf "%s: top-1 %.3f %%, published %.3f %%: %s\n", name, got, want, off <= 0.05 ? "right" : "WRONG"
        exit off > 0.05
    }' || wrong=1
}

# Resize then centre crop: V1 256 -> 224, V2 232 -> 224.
[ -z "$v1" ] || score "torchvision V1" "$v1" 0.875 76.13
[ -z "$v2" ] || score "torchvision V2" "$v2" 0.965517 80.858
exit "$wrong"
