#!/usr/bin/env bash
# The dry run before anything costs money: 10 epochs on small data, a log, a checkpoint for PyTorch.
set -euo pipefail

usage() {
    cat <<'TEXT'
run_debug.sh: train ResNet-50 for 10 epochs with configs/debug.toml and leave checkpoints/debug_epoch10.pth.

    experiments/run_debug.sh [--engine PATH] [-- ARGUMENTS OF engine train...]

  --engine PATH   a built binary (default: cargo run --release)
  --help          this text

OUTPUT_DIR   where logs.md and checkpoints/ go (default: the repository, whose own logs.md is filled)
DATA_DIR     a data set (default: the drawn shapes that the program makes itself)

Interrupted? Run it again: it goes on where it stopped. Exit codes are those of `engine train` (75: run again).
TEXT
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
engine=''
while [ $# -gt 0 ]; do
    case $1 in
    --engine)
        [ $# -ge 2 ] || { echo "run_debug.sh: --engine wants a path" >&2; exit 2; }
        engine=$2
        shift 2
        ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "run_debug.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done
export OUTPUT_DIR=${OUTPUT_DIR:-$root}

run_engine() {
    if [ -n "$engine" ]; then
        "$engine" "$@"
    else
        cargo run --release --quiet --manifest-path "$root/Cargo.toml" --bin engine -- "$@"
    fi
}

echo "== machine"
uname -srm
if command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi
else
    echo "no NVIDIA GPU here (nvidia-smi is not installed): training on the CPU"
fi

echo "== training"
run_engine train --config "$root/configs/debug.toml" "$@"

echo "== export"
run_engine export --checkpoint "$OUTPUT_DIR/checkpoints/last.safetensors" --format pth \
    --output "$OUTPUT_DIR/checkpoints/debug_epoch10.pth"
ls -l "$OUTPUT_DIR/checkpoints/debug_epoch10.pth"

echo "== $OUTPUT_DIR/logs.md"
grep '^epoch: ' "$OUTPUT_DIR/logs.md" | tail -n 10
