#!/usr/bin/env bash
# Imagenette, ten easy classes of ImageNet, as {train,val}/<wnid>/ with classes.txt. `--help` says the rest.
set -euo pipefail
# shellcheck source=datasets/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'TEXT'
prepare_small.sh: fetch Imagenette (9,469 training and 3,925 validation images) and lay it out for `engine train`.

    datasets/prepare_small.sh [--size 160|320] [--output DIR] [--from FILE] [--md5 HEX] [--sha256 HEX]

  --size 160|320   shorter side of the images (default 160: about 0.1 GB to fetch; 320: 0.35 GB)
  --output DIR     where train/, val/ and classes.txt go (default: $DATA_DIR, else datasets/imagenette2-SIZE)
  --from FILE      use this archive instead of downloading; nothing is fetched
  --md5 HEX        expected md5 (default: the one torchvision publishes for the archive of this size)
  --sha256 HEX     expected SHA-256; takes the place of the default md5
  --help           this text

A download that broke off goes on where it stopped; a finished folder is left as it is. Exit codes: 0 done, 1 failed,
2 wrong command line, 3 the archive is not what it should be.
TEXT
}

# The published folders, in the order of the labels.
labels() {
    cat <<'TEXT'
n01440764	tench
n02102040	English springer
n02979186	cassette player
n03000684	chain saw
n03028079	church
n03394916	French horn
n03417042	garbage truck
n03425413	gas pump
n03445777	golf ball
n03888257	parachute
TEXT
}

size=160 output=${DATA_DIR:-} from='' md5='' sha256=''
while [ $# -gt 0 ]; do
    case $1 in
    --size) size=$(value_of "$1" "$@"); shift 2 ;;
    --output) output=$(value_of "$1" "$@"); shift 2 ;;
    --from) from=$(value_of "$1" "$@"); shift 2 ;;
    --md5) md5=$(value_of "$1" "$@"); shift 2 ;;
    --sha256) sha256=$(value_of "$1" "$@"); shift 2 ;;
    --help | -h) usage && exit 0 ;;
    *) die 2 "unknown argument '$1'; see $program --help" ;;
    esac
done
# The md5 sums are those of torchvision 0.29, torchvision/datasets/imagenette.py.
case $size in
160) published=e793b78cc4c9e9a4ccc0c1155377a412 ;;
320) published=3df6f0d01a2c9592104656642f5e78a3 ;;
*) die 2 "--size is '$size', wanted 160 or 320" ;;
esac
[ -n "$md5$sha256" ] || md5=$published
output=${output:-$(dirname "$0")/imagenette2-$size}
url=https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-$size.tgz
partial=$output.partial

say_how_to_train() {
    printf '%s\n' "$(count_files "$output/train") training and $(count_files "$output/val") validation images in $output"
    printf 'Train on it:\n    cargo run --release -- train --config configs/debug.toml --data %q\n' "$output"
}

# fetch FILE: downloads to FILE.part, going on where an earlier download stopped.
fetch() {
    note "downloading $url"
    if command -v curl >/dev/null 2>&1; then
        curl --fail --location --retry 5 --continue-at - --output "$1.part" "$url" ||
            die 1 "the download of $url failed; run this again to go on, or give a copy with --from FILE"
    else
        need wget
        wget --continue --tries=5 --output-document="$1.part" "$url" ||
            die 1 "the download of $url failed; run this again to go on, or give a copy with --from FILE"
    fi
    mv "$1.part" "$1"
}

check_archive() {
    if [ -n "$md5" ]; then verify md5 "$1" "$md5"; fi
    if [ -n "$sha256" ]; then verify sha256 "$1" "$sha256"; fi
    note "sha256 of $1: $(digest sha256 "$1")"
}

# unpack ARCHIVE: into $partial, checked there, then renamed to $output.
unpack() {
    local root split missing
    rm -rf "$partial"
    mkdir -p "$partial"
    note "unpacking into $output"
    tar -xzf "$1" -C "$partial" || die 3 "$1: tar cannot unpack it (reason above); fetch the archive again"
    root=$(find "$partial" -mindepth 1 -maxdepth 2 -type d -name train | head -n 1)
    [ -n "$root" ] || die 3 "$1: holds no folder train/; this is not Imagenette"
    root=$(dirname "$root")
    for split in train val; do
        missing=$(labels | while IFS=$'\t' read -r id _; do [ -d "$root/$split/$id" ] || printf '%s ' "$id"; done)
        [ -z "$missing" ] || die 3 "$1: $split/ lacks the classes $missing; this is not Imagenette"
    done
    mkdir "$partial/whole"
    mv "$root/train" "$root/val" "$partial/whole/"
    labels >"$partial/whole/classes.txt"
    rmdir "$output" 2>/dev/null || true
    [ ! -e "$output" ] || die 1 "$output exists and is not a finished Imagenette; choose another --output or delete it"
    mv "$partial/whole" "$output"
    rm -rf "$partial"
}

need tar
if [ -f "$output/classes.txt" ] && [ -d "$output/train" ] && [ -d "$output/val" ]; then
    labels | cmp -s - "$output/classes.txt" ||
        die 1 "$output holds another data set (its classes.txt differs); choose another --output"
    note "$output is prepared already"
    say_how_to_train
    exit 0
fi
mkdir -p "$(dirname "$output")" || die 1 "cannot create the folder above $output; choose another --output"
if [ -n "$from" ]; then
    [ -f "$from" ] || die 3 "--from $from: no such file"
    check_archive "$from"
    unpack "$from"
else
    archive=$(dirname "$output")/imagenette2-$size.tgz
    if [ ! -f "$archive" ]; then fetch "$archive"; fi
    check_archive "$archive"
    unpack "$archive"
    rm -f "$archive"
fi
say_how_to_train
