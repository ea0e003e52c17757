#!/usr/bin/env bash
# A data set from S3 to this instance's fastest disk that holds it. `--help` says the rest.
set -euo pipefail
# shellcheck source=datasets/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'TEXT'
sync_to_ec2.sh: copy a data set from S3 to this instance, check it, and say whether disk and CPU keep the card busy.

    datasets/sync_to_ec2.sh --from s3://BUCKET/PREFIX [--to DIR] [--gpu CARD] [--engine PATH]

  --from URL     a folder of S3: packed shards (engine data pack) or {train,val}/<class>/. Where it holds SHA256SUMS (made by
                 `sha256sum * >SHA256SUMS`), every file that it names is checked
  --to DIR       where it goes (default: the instance store if it holds it, else $DATA_DIR, else /data/imagenet)
  --gpu CARD     v100, t4, a100, h100 or h200: what engine plan says this card needs (default: found by nvidia-smi)
  --engine PATH  the binary (default: target/release/engine)
  --dry-run      say what would be done and measure nothing
  --help         this text

Run it again after an interruption: files of the right size are kept. Copies with s5cmd where it is installed (several times as
fast), else with aws. Exit codes: 0 done, 1 failed, 2 wrong command line, 3 a file is not what SHA256SUMS says.
TEXT
}

from='' to='' gpu='' engine='' dry=no
while [ $# -gt 0 ]; do
    case $1 in
    --from) from=$(value_of "$1" "$@"); shift 2 ;;
    --to) to=$(value_of "$1" "$@"); shift 2 ;;
    --gpu) gpu=$(value_of "$1" "$@"); shift 2 ;;
    --engine) engine=$(value_of "$1" "$@"); shift 2 ;;
    --dry-run) dry=yes; shift ;;
    --help | -h) usage; exit 0 ;;
    *) die 2 "unknown argument '$1'; see $program --help" ;;
    esac
done
case $from in
'') die 2 "give --from s3://BUCKET/PREFIX; see $program --help" ;;
s3://?*) from=${from%/} ;;
*) die 2 "--from $from: wanted s3://BUCKET/PREFIX" ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd -P)
engine=${engine:-$root/target/release/engine}
need aws 'apt-get install awscli, or https://docs.aws.amazon.com/cli/'

gib() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1073741824 }'; }

# Bytes that a folder of S3 holds.
size_of_source() {
    aws s3 ls --recursive --summarize "$from/" | awk '/Total Size:/ { print $3; found = 1 } END { exit !found }'
}

# free_at DIR: bytes free on the file system that will hold DIR, which need not exist yet.
free_at() {
    local path=$1
    while [ ! -e "$path" ]; do path=$(dirname "$path"); done
    df -Pk "$path" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'
}

# Where an instance store (NVMe that belongs to the machine: fast, and gone when it stops) is mounted; nothing where there is none.
instance_store() {
    command -v lsblk >/dev/null 2>&1 || return 0
    lsblk -nro MODEL,MOUNTPOINT 2>/dev/null | awk '/Instance.*Storage/ && NF > 1 { print $NF; exit }'
}

choose_target() {
    local wanted=$1 store
    if [ -n "$to" ]; then
        echo "$to"
        return
    fi
    store=$(instance_store)
    if [ -n "$store" ] && [ "$(free_at "$store")" -gt "$wanted" ]; then
        note "the instance store at $store holds it: fast, and empty again after a stop or a reclaimed spot instance"
        echo "$store/$(basename "$from")"
    else
        [ -z "$store" ] || note "the instance store at $store has $(gib "$(free_at "$store")") GiB free: too small"
        echo "${DATA_DIR:-/data/imagenet}"
    fi
}

copy() {
    if command -v s5cmd >/dev/null 2>&1; then
        s5cmd sync "$from/*" "$1/"
    else
        note "s5cmd is not installed: copying with aws, which is slower"
        aws s3 sync --only-show-errors "$from/" "$1/"
    fi
}

check_sums() {
    if [ ! -f "$1/SHA256SUMS" ]; then
        note "no SHA256SUMS in $from: sizes were compared, contents were not. engine data check $1 decodes everything"
        return
    fi
    note "checking SHA256SUMS"
    (cd "$1" && sha256sum --quiet --check SHA256SUMS >&2) ||
        die 3 "$1: the files above are not what SHA256SUMS says; delete them and run this again"
}

# A gigabyte read past the page cache, in MB/s.
disk_rate() {
    local file
    file=$(find -L "$1" -type f -size +64M | head -n 1)
    [ -n "$file" ] || file=$(find -L "$1" -type f -size +1M | head -n 1)
    [ -n "$file" ] || return 0
    dd if="$file" of=/dev/null bs=4M count=256 iflag=direct 2>&1 |
        awk '/copied/ { rate = $(NF - 1); if ($NF ~ /^GB/) rate *= 1000; if ($NF ~ /^kB/) rate /= 1000; printf "%.0f", rate }'
}

card_here() {
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr '[:upper:]' '[:lower:]' |
        sed -n 's/.*\(v100\|t4\|a100\|h100\|h200\).*/\1/p'
}

# number KEY: a number out of engine plan's JSON, by its path of two names at most.
number() { printf '%s' "$plan" | sed -n "s/.*\"$1\":{\"low\":[0-9.]*,\"high\":\([0-9.]*\)}.*/\1/p"; }

say_whether_it_keeps_up() {
    local card plan wants has cores
    card=${gpu:-$(card_here)}
    if [ -z "$card" ] || [ ! -x "$engine" ]; then
        note "no card that engine plan knows, or no $engine: disk and CPU are not compared with what training needs"
        return
    fi
    plan=$("$engine" plan --gpu "$card" --data "$1" --json) || return 0
    wants=$(number disk_megabytes_per_second) has=$(disk_rate "$1")
    awk -v wants="$wants" -v has="${has:-0}" -v card="$card" 'BEGIN {
        if (has == 0) { print "disk: nothing large enough to measure with"; exit }
        # In parentheses: some awks read a bare > as a file to print to.
        printf "disk: %d MB/s measured, %d MB/s wanted by a %s: %s\n", has, wants, card, (has >= wants ? "enough" : \
            "too slow. Packed shards at 256 px (engine data pack --shorter-side 256) want a quarter; or raise a gp3 volume to 1,000 MB/s")
    }'
    cores=$(number cpu_cores)
    awk -v wants="$cores" -v has="$(nproc)" -v card="$card" 'BEGIN {
        printf "CPU: %d vCPUs, half a core each; %.1f cores wanted by a %s: %s\n", has, wants, card, (has / 2 >= wants ? "enough" : \
            "too few. Packed shards at 256 px take less than half the work; --features turbojpeg decodes half again as fast")
    }'
}

bytes=$(size_of_source) || die 1 "$from: cannot be listed, or is empty; check the address and 'aws sts get-caller-identity'"
target=$(choose_target "$bytes")
free=$(free_at "$target")
there=0
[ ! -d "$target" ] || there=$(du -sk "$target" | awk '{ printf "%.0f", $1 * 1024 }')
note "$from: $(gib "$bytes") GiB; $target: $(gib "$free") GiB free, $(gib "$there") GiB there already"
[ $((free + there)) -gt "$bytes" ] ||
    die 1 "$target: $(gib "$bytes") GiB do not fit; choose another --to, or enlarge the volume"
[ "$dry" = no ] || exit 0
mkdir -p "$target" || die 1 "cannot create $target; choose another --to"
copy "$target" || die 1 "$from: the copy did not end well (reason above); run this again: what is there is kept"
check_sums "$target"
say_whether_it_keeps_up "$target"
printf 'Train on it:\n    DATA_DIR=%q OUTPUT_DIR=/data/run %q train --config configs/RECIPE.toml\n' "$target" "$engine"
