#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command of less than eight minutes. See --help.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

usage() {
    cat <<'TEXT'
usage: bench/gpu.sh [--parts A,B,...] [FOLDER]

Proves the CUDA backend on this machine's first card and measures it. Needs the built binary (target/release/engine, or
$ENGINE) and NVIDIA's driver, cuBLAS and cuDNN; Python with PyTorch ($PYTHON, default python3) for the parts that compare with it.
Writes raw output to FOLDER (default: bench/runs/<date>-<card>) and a table last: PASS, FAIL, or -- for what this machine
cannot run. Exit: 0 all passed, 1 something failed, 2 wrong command line, 70 no card, or it cannot be used.

parts, in this order:
  doctor      driver, libraries, card
  check       every node of a step and whole steps against the CPU; resume bit for bit        (engine check)
  parity      one step's gradients beside PyTorch's fp32 and AMP, all against f64              (peers/step_parity.py)
  losses      50 steps on the same batches beside two runs of PyTorch AMP                      (peers/follow_amp.py)
  kernels     every call of a step against its floor; our own kernels reach 80 % of copy bandwidth (engine bench kernels)
  trace       no host synchronisation inside a step                                            (engine bench train --trace)
  throughput  batch 256 at 224 px, synthetic, in turns with PyTorch AMP eager and compiled
  resume      a short training on the embedded data, killed and resumed: the same bytes
  nccl        one rank with NCCL in the captured step beside none: the same bytes, less than 1 % of its time
  sanitizer   compute-sanitizer's memcheck, racecheck, initcheck on the tiny network
TEXT
}

# Seconds for everything; a part that would end later is cut. The sanitizers, whose time is the least known, come last.
budget=470
# Of the copy bandwidth measured in the same run, for our own kernels whose operands do not fit the card's cache.
goal_share=80
# Of a step's time, what the exchanges of a single rank may take, in percent.
goal_overhead=1
all_parts=doctor,check,parity,losses,kernels,trace,throughput,resume,nccl,sanitizer

# shellcheck source=bench/gpu_common.sh
. bench/gpu_common.sh

# ---- the parts ----------------------------------------------------------------------------------------------------------

do_doctor() {
    local status=PASS begin=$SECONDS
    run doctor 30 "$engine" doctor || status=FAIL
    grep -Eq '^missing (NVIDIA driver|cuBLAS|cuDNN|GPU)' "$out/doctor.txt" && status=FAIL
    verdict "$status" doctor $((SECONDS - begin)) "$(last_line doctor)"
}

do_check() { part check 150 "$engine" check --device cuda; }

do_sanitizer() {
    local tool found
    found=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | head -n 1)
    if [ -z "$found" ]; then
        verdict -- sanitizer 0 "compute-sanitizer is not installed (it comes with the CUDA toolkit)"
        return
    fi
    for tool in memcheck racecheck initcheck; do
        # A pass takes minutes under some of them.
        part "sanitizer-$tool" 40 env ENGINE_DEVICE_PATIENCE=600 "$found" --tool "$tool" --error-exitcode 9 "$engine" check --quick --device cuda
    done
}

do_parity() {
    local precision amp
    has_torch || { verdict -- parity 0 "python3 has no PyTorch with CUDA"; return; }
    for precision in fp32 fp16; do
        amp=$precision
        run "dump-$precision" 30 "$engine" check --dump "$scratch/$precision" --device cuda --precision "$precision" --batch 32 --resolution 128 ||
            { verdict FAIL "parity-$precision" 0 "engine check --dump: $(last_line "dump-$precision")"; continue; }
        part "parity-$precision" 60 "$python" bench/peers/step_parity.py --dump "$scratch/$precision" --device cuda --amp "$amp" --rows 200
    done
}

# The embedded data, drawn once.
draw_data() {
    [ -d "$scratch/data" ] || run data 60 "$engine" data synth "$scratch/data" --train-per-class 200 --val-per-class 20
}

do_losses() {
    has_torch || { verdict -- losses 0 "python3 has no PyTorch with CUDA"; return; }
    local common=(--config configs/debug.toml --data "$scratch/data" --set data.batch=32 --set epochs=1 --set loss.label_smoothing=0.1)
    if ! { draw_data && run losses-weights 60 "$python" bench/peers/follow_amp.py --write-initial "$scratch/init.safetensors" --classes 10 &&
        run losses-batches 60 "$engine" data batches "${common[@]}" --count 50 -o "$scratch/batches.safetensors" &&
        run losses-engine 60 "$engine" train "${common[@]}" --device cuda --init "$scratch/init.safetensors" --output "$scratch/losses" \
            --set device.precision=fp16 --set device.loss_scale=1024; }; then
        verdict FAIL losses 0 "preparing: $(tail -qn 1 "$out"/losses-*.txt | tail -n 1)"
        return
    fi
    cp "$scratch/losses/metrics.jsonl" "$out/losses.metrics.jsonl" 2>/dev/null
    part losses 60 "$python" bench/peers/follow_amp.py --batches "$scratch/batches.safetensors" --checkpoint "$scratch/init.safetensors" \
        --metrics "$scratch/losses/metrics.jsonl" --device cuda --amp fp16 --nesterov --label-smoothing 0.1
}

# shares FILE: each of our own kernels in the report of `engine bench kernels --json`, the slowest first: share of the copy's
# rate in percent, its rate in GB/s, calls in a step, "*" where its operands fit the cache, name. A row is one flat object, and
# no text in it has braces; the libraries' products have operations.
shares() {
    tail -n 1 "$1" | sed 's/[{}]/\n/g' | awk '
        function number(key) { return match($0, "\"" key "\": *[0-9.eE+-]+") ? substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3) + 0 : 0 }
        function text(key) { return match($0, "\"" key "\": *\"[^\"]*") ? substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) : "" }
        number("copy_gigabytes_per_second") { copy = number("copy_gigabytes_per_second") }
        number("microseconds") && !number("gigaflop") {
            rate = 1e3 * number("megabytes") / number("microseconds")
            printf "%.1f\t%.0f\t%d\t%s\t%s\n", 100 * rate / copy, rate, number("count"), (/"cached": *true/ ? "*" : " "), text("call")
        }' | sort -g
}

# The table in a file of its own, and the kernels below the goal under the verdict.
do_kernels() {
    local begin=$SECONDS status=0 below judged copy line
    run kernels 60 "$engine" bench kernels --device cuda --json || status=$?
    if [ "$status" -ne 0 ]; then
        [ "$status" -ne 70 ] || device_failed=yes
        line=$(grep -m 1 '^error' "$out/kernels.txt" || last_line kernels)
        verdict FAIL kernels $((SECONDS - begin)) "exit $status: ${line#engine: }"
        return
    fi
    shares "$out/kernels.txt" >"$out/kernels-shares.txt"
    copy=$(figure kernels copy_gigabytes_per_second)
    judged=$(awk -F '\t' '$4 != "*"' "$out/kernels-shares.txt" | wc -l)
    below=$(awk -F '\t' -v goal="$goal_share" '$4 != "*" && $1 < goal' "$out/kernels-shares.txt")
    if [ "$judged" -eq 0 ] || [ -z "$copy" ]; then
        verdict FAIL kernels $((SECONDS - begin)) "the report names no kernel of ours beyond the cache: $out/kernels.txt"
    elif [ -z "$below" ]; then
        verdict PASS kernels $((SECONDS - begin)) "all $judged of ours reach $goal_share % of the copy's $copy GB/s; the slowest: $(awk -F '\t' '$4 != "*" { print $5 " " $1 " %"; exit }' "$out/kernels-shares.txt")"
    else
        verdict FAIL kernels $((SECONDS - begin)) "$(wc -l <<<"$below") of $judged of ours below $goal_share % of the copy's $copy GB/s:"
        while IFS=$'\t' read -r share rate count _ call; do
            table+=("$(printf '        %5s %% %6s GB/s %3s times  %s' "$share" "$rate" "$count" "$call")")
        done <<<"$below"
    fi
}

# The engine says in a line whether the host waited for the card between two steps.
do_trace() {
    local begin=$SECONDS status=0 said
    run trace 40 "$engine" bench train --device cuda --precision fp16 --batch 64 --steps 5 --trace "$out/trace.json" || status=$?
    said=$(grep -m 1 ' steps; ' "$out/trace.txt")
    case $status/$said in
    0/*'nothing between the first and the last waits'*) verdict PASS trace $((SECONDS - begin)) "$said" ;;
    *) verdict FAIL trace $((SECONDS - begin)) "exit $status: ${said:-$(last_line trace)}" ;;
    esac
}

# A training that is killed after its first epoch and goes on must end with the bytes of one that is not.
do_resume() {
    local begin=$SECONDS whole=$scratch/whole cut=$scratch/cut pid tries=0
    local train=("$engine" train --config configs/debug.toml --data "$scratch/data" --device cuda --set epochs=4
        --set device.precision=fp16 --set "device.algorithms=file:$scratch/algorithms.json")
    if ! { draw_data && run resume-whole 60 "${train[@]}" --output "$whole"; }; then
        verdict FAIL resume $((SECONDS - begin)) "the uninterrupted run: $(last_line resume-whole)"
        return
    fi
    cp "$whole/metrics.jsonl" "$out/resume.metrics.jsonl" 2>/dev/null
    "${train[@]}" --output "$cut" >"$out/resume-cut.txt" 2>&1 &
    pid=$!
    until grep -q '^epoch: 1 ' "$cut/logs.md" 2>/dev/null || [ "$tries" -ge 600 ]; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
        tries=$((tries + 1))
    done
    kill -9 "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
    if grep -q '^epoch: 4 ' "$cut/logs.md" 2>/dev/null || ! grep -q '^epoch: 1 ' "$cut/logs.md" 2>/dev/null; then
        verdict FAIL resume $((SECONDS - begin)) "the kill did not fall between epochs 1 and 4: $(last_line resume-cut)"
        return
    fi
    run resume-again 60 "${train[@]}" --output "$cut" ||
        { verdict FAIL resume $((SECONDS - begin)) "the resumed run: $(last_line resume-again)"; return; }
    if cmp "$whole/checkpoints/last.safetensors" "$cut/checkpoints/last.safetensors" >"$out/resume.txt" 2>&1; then
        verdict PASS resume $((SECONDS - begin)) "killed with SIGKILL after epoch 1 of 4 and resumed: the same bytes"
    else
        verdict FAIL resume $((SECONDS - begin)) "other bytes than the uninterrupted run: $(last_line resume)"
    fi
}

# alone NAME N: a measurement of the step; with NCCL where NAME is nccl.
alone() {
    local exchanges=0
    [ "$1" != nccl ] || exchanges=1
    run "nccl-rate-$1-$2" 40 env ENGINE_NCCL_ALONE=$exchanges "$engine" bench train --device cuda --precision fp16 --batch 256 \
        --resolution 224 --steps 60 --algorithms "$scratch/nccl-rate.json" --json
}

# What several cards would do, by one: all exchanges are recorded into the step's graph, with nobody to exchange with. Rates in
# turns, three of each, by the same routines; the medians count.
do_nccl() {
    local begin=$SECONDS kind n rates=() text
    local train=("$engine" train --config configs/debug.toml --data "$scratch/data" --device cuda --set epochs=2
        --set device.precision=fp16 --set "device.algorithms=file:$scratch/nccl.json")
    "$engine" doctor >"$out/nccl-doctor.txt" 2>&1
    if ! grep -q '^ok *NCCL' "$out/nccl-doctor.txt"; then
        verdict -- nccl $((SECONDS - begin)) "$(grep 'NCCL' "$out/nccl-doctor.txt" || echo 'engine doctor does not know NCCL')"
        return
    fi
    if ! { draw_data && run nccl-without 60 "${train[@]}" --output "$scratch/without" &&
        run nccl-with 60 env ENGINE_NCCL_ALONE=1 "${train[@]}" --output "$scratch/with"; }; then
        verdict FAIL nccl $((SECONDS - begin)) "a training: $(tail -qn 1 "$out"/nccl-with*.txt | tail -n 1)"
        return
    fi
    sha256sum "$scratch"/with*/checkpoints/last.safetensors >"$out/nccl-digests.txt"
    for n in 1 2 3; do
        for kind in none nccl; do
            alone "$kind" "$n" || { verdict FAIL nccl $((SECONDS - begin)) "engine bench train: $(last_line "nccl-rate-$kind-$n")"; return; }
        done
    done
    for kind in none nccl; do
        rates+=("$(for n in 1 2 3; do figure "nccl-rate-$kind-$n" images_per_second; done | sort -g | sed -n 2p)")
    done
    text=$(awk -v a="${rates[0]:-0}" -v b="${rates[1]:-0}" -v g="$goal_overhead" -v kinds="$(cut -d ' ' -f 1 "$out/nccl-digests.txt" | sort -u | wc -l)" 'BEGIN {
        over = b > 0 ? 100 * (a / b - 1) : 100
        printf "%s %s; %.0f images/s with NCCL, %.0f without: %.2f %% of the step (goal below %s %%)", \
            (kinds == 1 && over < g ? "PASS" : "FAIL"), (kinds == 1 ? "the same bytes" : "other bytes"), b, a, over, g
    }')
    verdict "${text%% *}" nccl $((SECONDS - begin)) "${text#* }"
}

run_parts
