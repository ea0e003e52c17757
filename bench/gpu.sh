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
  sanitizer   compute-sanitizer's memcheck, racecheck, initcheck on the tiny network
TEXT
}

# Seconds for everything; a part that would end later is cut. The sanitizers, whose time is the least known, come last.
budget=470
goal_ratio=1.2
# Of the copy bandwidth measured in the same run, for our own kernels whose operands do not fit the card's cache.
goal_share=80
all_parts=doctor,check,parity,losses,kernels,trace,throughput,resume,sanitizer

parts=$all_parts out=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --parts) [ $# -ge 2 ] || { echo "--parts wants a list" >&2; exit 2; }; parts=$2; shift 2 ;;
    --parts=*) parts=${1#*=}; shift ;;
    -*) echo "$1: no such option; --help lists them" >&2; exit 2 ;;
    *) [ -z "$out" ] || { echo "$1: one folder is wanted" >&2; exit 2; }; out=$1; shift ;;
    esac
done
IFS=, read -r -a wanted <<<"$parts"
for part in "${wanted[@]}"; do
    case ,$all_parts, in *",$part,"*) ;; *) echo "--parts $part: no such part; --help lists them" >&2; exit 2 ;; esac
done

engine=${ENGINE:-target/release/engine}
python=${PYTHON:-python3}
[ -x "$engine" ] || { echo "$engine is not there: cargo build --release, or set ENGINE" >&2; exit 2; }

# ---- libraries that pip alone has installed -----------------------------------------------------------------------------

# Folders nvidia/*/lib of Python's packages: nvidia/cudnn/lib, nvidia/cublas/lib, or nvidia/cu13/lib.
pip_folders() {
    "$python" - 2>/dev/null <<'PYTHON'
import glob, site, sys
roots = site.getsitepackages() + [site.getusersitepackages()] + [p for p in sys.path if p.endswith("-packages")]
print("\n".join(dict.fromkeys(f for root in roots for f in sorted(glob.glob(root + "/nvidia/*/lib")))))
PYTHON
}

# Whether the loader finds a library by itself. cudarc asks for the names of CUDA 13 and 12.
loader_finds() {
    local name=$1 folder
    if (ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null) | grep -q "$name\.so"; then return 0; fi
    IFS=: read -r -a folders <<<"${LD_LIBRARY_PATH:-}"
    for folder in ${folders[@]+"${folders[@]}"}; do
        [ -n "$folder" ] && compgen -G "$folder/$name.so*" >/dev/null && return 0
    done
    return 1
}

added=''
for library in libcublas libcudnn; do
    loader_finds "$library" && continue
    while IFS= read -r folder; do
        compgen -G "${folder:-/nowhere}/$library.so*" >/dev/null || continue
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
        added="$added $folder"
        break
    done < <(pip_folders)
done

# ---- the card -----------------------------------------------------------------------------------------------------------

card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$card" ]; then
    echo "nvidia-smi finds no card: nothing to measure here" >&2
    "$engine" doctor >&2
    exit 70
fi
slug=$(tr ' A-Z' '-a-z' <<<"$card" | tr -cd 'a-z0-9.-')
out=${out:-bench/runs/$(date +%F)-$slug}
mkdir -p "$out" || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
table=() failed=0 device_failed=no

{
    nvidia-smi
    "$engine" --version
    git rev-parse HEAD
    nproc
    "$python" -c 'import torch; print("torch", torch.__version__, "cudnn", torch.backends.cudnn.version())'
    echo "added to LD_LIBRARY_PATH:${added:- nothing}"
} >"$out/machine.txt" 2>&1

# ---- running and judging ------------------------------------------------------------------------------------------------

# verdict PASS|FAIL|-- NAME SECONDS TEXT: a line of the table.
verdict() {
    [ "$1" = FAIL ] && failed=$((failed + 1))
    table+=("$(printf '%-5s %-22s %4s s  %s' "$1" "$2" "$3" "$(cut -c 1-120 <<<"$4")")")
}

# run NAME LIMIT COMMAND...: output to NAME.txt; status as the command's, 124 when its time or that of all parts is over.
run() {
    local name=$1 limit=$2 left=$((budget - SECONDS))
    shift 2
    printf '=== %s\n' "$name"
    if [ "$left" -le 2 ]; then
        echo "no time left of $budget s" >"$out/$name.txt"
        return 124
    fi
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$out/$name.txt" 2>&1
}

last_line() { grep -v '^[[:space:]]*$' "$out/$1.txt" 2>/dev/null | tail -n 1; }

# part NAME LIMIT COMMAND...: passes when the command does.
part() {
    local name=$1 begin=$SECONDS status=0 text
    run "$@" || status=$?
    text=$(last_line "$name")
    [ "$status" -ne 2 ] || text=$(grep -m 1 '^error' "$out/$name.txt" || last_line "$name")
    [ "$status" -ne 70 ] || device_failed=yes
    case $status in
    0) verdict PASS "$name" $((SECONDS - begin)) "$text" ;;
    124 | 137) verdict FAIL "$name" $((SECONDS - begin)) "cut off: $text" ;;
    *) verdict FAIL "$name" $((SECONDS - begin)) "exit $status: ${text#engine: }" ;;
    esac
    return "$status"
}

has_torch() {
    [ -n "${torch_works:-}" ] || { "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && torch_works=yes || torch_works=no; }
    [ "$torch_works" = yes ]
}

# A figure of the JSON object on the last line of a part's output.
figure() { last_line "$1" | sed -n "s/.*\"$2\": *\([0-9.eE+-]*\).*/\1/p"; }

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

# ours N, peer N ARGS...: one measurement; images a second in the object that it prints last.
ours() {
    run "throughput-engine-$1" 60 "$engine" bench train --device cuda --precision fp16 --batch "$batch" --resolution 224 --steps 30 --json
}
peer() {
    local name=$1
    shift
    run "throughput-$name" 110 "$python" bench/peers/train_throughput.py --device cuda --amp fp16 --batch "$batch" --resolution 224 \
        --steps 30 --warmup 5 "$@"
}

# In turns; the engine's median against the peer's best.
do_throughput() {
    local begin=$SECONDS batch=256 engine_rate eager compiled best text
    ours 1 || { verdict FAIL throughput $((SECONDS - begin)) "engine bench train: $(last_line throughput-engine-1)"; return; }
    if ! has_torch; then
        verdict -- throughput $((SECONDS - begin)) "engine $(figure throughput-engine-1 images_per_second) images/s at batch $batch; no PyTorch beside it"
        return
    fi
    peer eager-1; ours 2; peer compiled --compile; ours 3; peer eager-2
    engine_rate=$(for n in 1 2 3; do figure "throughput-engine-$n" images_per_second; done | sort -g | sed -n 2p)
    eager=$(for n in 1 2; do figure "throughput-eager-$n" images_per_second; done | sort -g | tail -n 1)
    compiled=$(figure throughput-compiled images_per_second)
    best=$(printf '%s\n' "${eager:-0}" "${compiled:-0}" | sort -g | tail -n 1)
    text=$(awk -v a="${engine_rate:-0}" -v e="${eager:-0}" -v c="${compiled:-0}" -v b="$best" -v g="$goal_ratio" 'BEGIN {
        r = b > 0 ? a / b : 0
        printf "%s engine %.0f images/s, PyTorch AMP eager %.0f, compiled %.0f: ratio %.2f (goal %.1f)", (r >= g && e > 0 && c > 0 ? "PASS" : "FAIL"), a, e, c, r, g
    }')
    verdict "${text%% *}" throughput $((SECONDS - begin)) "${text#* }"
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

for part in "${wanted[@]}"; do "do_$part"; done

{
    printf '\n%s; engine %s; %s s in all\n' "$card" "$("$engine" --version | cut -d ' ' -f 2)" "$SECONDS"
    printf '%s\n' "${table[@]}"
    [ "$failed" -eq 0 ] && echo "all passed" || echo "$failed FAILED; raw output in $out"
} | tee "$out/table.txt"
[ "$device_failed" = no ] || exit 70
[ "$failed" -eq 0 ]
