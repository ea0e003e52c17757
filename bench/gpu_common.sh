# shellcheck shell=bash
# What gpu.sh and gpu_speed.sh share: command line, libraries, card, and how parts are run and judged. Sourced by them, from the
# repository's root, with `usage`, `all_parts` and `budget` set.

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

added='' links=''
for library in libcublas libcudnn; do
    loader_finds "$library" && continue
    while IFS= read -r folder; do
        compgen -G "${folder:-/nowhere}/$library.so*" >/dev/null || continue
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
        added="$added $folder"
        break
    done < <(pip_folders)
done

# pip's NCCL has the library under its full name alone, and it is looked for under the short one.
if ! loader_finds libnccl; then
    while IFS= read -r folder; do
        [ -e "${folder:-/nowhere}/libnccl.so.2" ] || continue
        links=$(mktemp -d) && ln -s "$folder/libnccl.so.2" "$links/libnccl.so"
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$links"
        added="$added $folder"
        break
    done < <(pip_folders)
fi

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
trap 'rm -rf "$scratch" ${links:+"$links"}' EXIT
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

# ---- what both measure --------------------------------------------------------------------------------------------------

goal_ratio=1.2

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

# The parts that are wanted, then the table; exits as the scripts' --help says.
run_parts() {
    for part in "${wanted[@]}"; do "do_$part"; done
    {
        printf '\n%s; engine %s; %s s in all\n' "$card" "$("$engine" --version | cut -d ' ' -f 2)" "$SECONDS"
        printf '%s\n' "${table[@]}"
        [ "$failed" -eq 0 ] && echo "all passed" || echo "$failed FAILED; raw output in $out"
    } | tee "$out/table.txt"
    [ "$device_failed" = no ] || exit 70
    [ "$failed" -eq 0 ]
    exit
}
