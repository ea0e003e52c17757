#!/usr/bin/env bash
# Where a training step's time goes on this card, and what would make it faster, in one command of less than eight minutes.
# See --help.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

usage() {
    cat <<'TEXT'
usage: bench/gpu_speed.sh [--parts A,B,...] [FOLDER]

Measures ResNet-50's training step on this machine's first card, after bench/gpu.sh has proven it right. Needs what gpu.sh needs.
Writes raw output to FOLDER (default: bench/runs/<date>-<card>) and a table last: PASS, FAIL, or -- for what was not run. What was
not run is not judged. Exit: 0 all passed, 1 something failed, 2 wrong command line, 70 no card, or it cannot be used.

parts, in this order, the most worth knowing first:
  profile     every launch of the step against its floor, and PyTorch's by the same kinds      (engine bench step --profile)
  variants    every form and search of the step in turn; wrong gradients or losses fail        (engine bench step --variants)
  memory      the largest batch of 16 GB by plan, and PyTorch's measured                       (peers/step_memory.py)
  throughput  batch 256 at 224 px, synthetic, in turns with PyTorch AMP eager and compiled
  losses      200 steps of what was faster: within what three roundings of the weights do to the base

profile.json in FOLDER is what `engine plan --shares` takes.
environment: ENGINE, PYTHON as for gpu.sh; BATCH (256): images of a step in profile and variants
TEXT
}

# Seconds for everything; a part that would end later is cut, and what is cut in the variants says so itself.
budget=470
batch=${BATCH:-256}
all_parts=profile,variants,memory,throughput,losses

# shellcheck source=bench/gpu_common.sh
. bench/gpu_common.sh

# ---- the parts ----------------------------------------------------------------------------------------------------------

# json PART: the last line of a part's output, where it is an object.
json() { last_line "$1" | grep '^{' || true; }

# first PART KEY: the first figure of that name: those of the whole stand before those of kinds and launches.
first() { json "$1" | grep -o "\"$2\": *[0-9.eE+-]*" | head -n 1 | sed 's/.*: *//'; }

do_profile() {
    local begin=$SECONDS status=0
    run profile 80 "$engine" bench step --profile --device cuda --batch "$batch" --json || status=$?
    json profile >"$out/profile.json"
    if [ "$status" -ne 0 ] || [ ! -s "$out/profile.json" ]; then
        [ "$status" -ne 70 ] || device_failed=yes
        rm -f "$out/profile.json"
        verdict FAIL profile $((SECONDS - begin)) "exit $status: $(last_line profile)"
    else
        verdict PASS profile $((SECONDS - begin)) "$(awk -v s="$(first profile step_milliseconds)" -v f="$(first profile floor_milliseconds)" \
            -v r="$(first profile images_per_second)" 'BEGIN { printf "a step %.2f ms, floors %.2f ms (%.0f %%), %.0f images/s", s, f, 100 * f / s, r }')"
    fi
    has_torch || { verdict -- profile-pytorch 0 "python3 has no PyTorch with CUDA"; return; }
    local beside=()
    [ ! -s "$out/profile.json" ] || beside=(--beside "$out/profile.json")
    part profile-pytorch 60 "$python" bench/peers/step_profile.py --device cuda --amp fp16 --batch "$batch" --resolution 224 \
        --steps 5 --warmup 5 ${beside[@]+"${beside[@]}"}
}

# rows PART: verdict, name and the keys of a configuration of each variant that was measured; "failed" or "not run" of others.
# A variant's object has two objects within it, and no text in it has braces.
rows() {
    json "$1" | sed 's/[{}]/\n/g' | awk '
        function text(key) { return match($0, "\"" key "\": *\"[^\"]*") ? substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) : "" }
        /"name":/ { name = text("name"); set = text("set") }
        /"verdict":/ { printf "%s\t%s\t%s\n", text("verdict"), name, set }
        /"skipped":/ { print (text("skipped") ~ /^not run/ ? "not run" : "failed") "\t" name "\t" set }'
}

# judge_variants PART SECONDS STATUS
judge_variants() {
    local name=$1 seconds=$2 status=$3 bad faster left text
    [ "$status" -ne 70 ] || device_failed=yes
    if [ "$status" -ne 0 ] || [ -z "$(rows "$name")" ]; then
        verdict FAIL "$name" "$seconds" "exit $status: $(last_line "$name")"
        return
    fi
    bad=$(rows "$name" | awk -F '\t' '$1 == "WRONG" || $1 == "failed" { printf "%s %s; ", $2, $1 }')
    faster=$(rows "$name" | awk -F '\t' '$1 == "faster" { printf "%s ", $2 }')
    left=$(rows "$name" | awk -F '\t' '$1 == "not run"' | wc -l)
    text="${bad}faster: ${faster:-none }($(rows "$name" | wc -l) variants, $left not run)"
    if [ -n "$bad" ]; then verdict FAIL "$name" "$seconds" "$text"; else verdict PASS "$name" "$seconds" "$text"; fi
}

do_variants() {
    local begin=$SECONDS status=0
    run variants 220 "$engine" bench step --variants --device cuda --batch "$batch" --seconds 200 --json || status=$?
    judge_variants variants $((SECONDS - begin)) "$status"
}

do_memory() {
    local begin=$SECONDS plan
    plan=$("$engine" plan --config configs/resnet50-90.toml --gpu v100 --json 2>"$out/memory-plan.txt" | tee "$out/memory-plan.json" |
        sed -n 's/.*"largest_micro_batch": *\([0-9]*\).*"activation_mebibytes_an_image": *\([0-9.]*\).*/\1 images in 16 GB by plan, \2 MiB an image/p')
    [ -n "$plan" ] || { verdict FAIL memory $((SECONDS - begin)) "engine plan: $(tail -n 1 "$out/memory-plan.txt")"; return; }
    has_torch || { verdict -- memory $((SECONDS - begin)) "$plan; no PyTorch beside it"; return; }
    run memory 60 "$python" bench/peers/step_memory.py --device cuda --amp fp16 --resolution 224 --batches 32,64,128 --gibibytes 15.7 --multiple 16
    if [ -n "$(figure memory largest_batch)" ]; then
        verdict PASS memory $((SECONDS - begin)) "$plan; PyTorch $(figure memory largest_batch), $(figure memory mebibytes_an_image)"
    else
        verdict FAIL memory $((SECONDS - begin)) "$plan; PyTorch: $(last_line memory)"
    fi
}

# Of the variants, those that were faster; where none was, there is nothing to compare.
do_losses() {
    local begin=$SECONDS status=0 faster
    faster=$(rows variants | awk -F '\t' '$1 == "faster" { printf "%s%s", (n++ ? "," : ""), $2 }')
    [ -n "$faster" ] || { verdict -- losses 0 "no variant was faster"; return; }
    run losses 90 "$engine" bench step --variants --device cuda --batch 64 --steps 200 --only "$faster" --seconds 80 --json || status=$?
    judge_variants losses $((SECONDS - begin)) "$status"
}

run_parts
