#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command of a few minutes: bench/gpu.sh [FOLDER]
# Needs the built binary (target/release/engine, or $ENGINE) and NVIDIA's libraries. Writes raw output to FOLDER
# (default: bench/runs/<date>-<card>) and a short table last.
set -uo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-target/release/engine}
[ -x "$engine" ] || { echo "$engine is not there: cargo build --release, or set ENGINE" >&2; exit 2; }
card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' A-Z' '-a-z' | tr -cd 'a-z0-9.-')
[ -n "$card" ] || { echo "nvidia-smi finds no card: nothing to measure here" >&2; "$engine" doctor; exit 70; }
out=${1:-bench/runs/$(date +%F)-$card}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
table=()

# part NAME LIMIT COMMAND...: its output goes to a file, its end to the table.
part() {
    local name=$1 limit=$2 begin=$SECONDS status=0
    shift 2
    printf '=== %s\n' "$name"
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || status=$?
    tail -n 4 "$out/$name.txt"
    table+=("$(printf '%-22s exit %-3s %4s s  %s' "$name" "$status" $((SECONDS - begin)) "$(tail -n 1 "$out/$name.txt" | cut -c 1-90)")")
}

{ nvidia-smi; "$engine" --version; git rev-parse HEAD 2>/dev/null; } >"$out/machine.txt" 2>&1
part doctor 60 "$engine" doctor
part check 240 "$engine" check --device cuda
for precision in fp32 tf32 fp16 bf16; do
    part "bench-$precision" 120 "$engine" bench train --device cuda --precision "$precision" --batch 256 --steps 50
done
for precision in fp32 fp16; do
    part "train-$precision" 120 "$engine" train --config configs/debug.toml --device cuda --output "$scratch/$precision" \
        --set epochs=2 --set "device.precision=$precision" --set "device.algorithms=file:$scratch/$precision.json"
    cp "$scratch/$precision/metrics.jsonl" "$out/train-$precision.metrics.jsonl" 2>/dev/null
    cp "$scratch/$precision.json" "$out/algorithms-$precision.json" 2>/dev/null
done

echo
printf '%s\n' "${table[@]}" | tee "$out/table.txt"
