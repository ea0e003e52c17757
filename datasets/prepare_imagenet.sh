#!/usr/bin/env bash
# ImageNet-1k (ILSVRC2012) as {train,val}/<wnid>/ with classes.txt. `--help` says the rest.
set -euo pipefail
# shellcheck source=datasets/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'TEXT'
prepare_imagenet.sh: lay ImageNet-1k out for `engine train`, from the archives of image-net.org or from Kaggle's folder.

    datasets/prepare_imagenet.sh --from DIR   --output DIR [--synsets FILE] [--no-checksum]
    datasets/prepare_imagenet.sh --kaggle DIR --output DIR

  --from DIR       holds ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB) and
                   ILSVRC2012_devkit_t12.tar.gz, as image-net.org gives them to registered people
  --kaggle DIR     holds ILSVRC/Data/CLS-LOC/, LOC_val_solution.csv and LOC_synset_mapping.txt: the unpacked
                   imagenet-object-localization-challenge. Files are hard links where the disk allows, else copies
  --output DIR     where train/, val/ and classes.txt go (default: $DATA_DIR)
  --synsets FILE   lines of `ILSVRC id TAB wnid TAB words`, instead of the devkit's meta.mat (which takes python3,
                   standard library only, to read)
  --no-checksum    skip the md5 sums of the archives (minutes on a slow disk)
  --expect-train N, --expect-val N, --expect-classes N
                   counts to check at the end (default 1281167, 50000, 1000); for subsets
  --help           this text

Run it again after an interruption: finished classes are kept. Exit codes: 0 done, 1 failed, 2 wrong command line,
3 an archive is not what it should be.
TEXT
}

from='' kaggle='' output=${DATA_DIR:-} synsets='' checksum=yes
expect_train=1281167 expect_val=50000 expect_classes=1000
while [ $# -gt 0 ]; do
    case $1 in
    --from) from=$(value_of "$1" "$@"); shift 2 ;;
    --kaggle) kaggle=$(value_of "$1" "$@"); shift 2 ;;
    --output) output=$(value_of "$1" "$@"); shift 2 ;;
    --synsets) synsets=$(value_of "$1" "$@"); shift 2 ;;
    --expect-train) expect_train=$(value_of "$1" "$@"); shift 2 ;;
    --expect-val) expect_val=$(value_of "$1" "$@"); shift 2 ;;
    --expect-classes) expect_classes=$(value_of "$1" "$@"); shift 2 ;;
    --no-checksum) checksum=no; shift ;;
    --help | -h) usage; exit 0 ;;
    *) die 2 "unknown argument '$1'; see $program --help" ;;
    esac
done
[ -n "$output" ] || die 2 "give --output DIR or set DATA_DIR; see $program --help"
[ -n "$from" ] || [ -n "$kaggle" ] || die 2 "give --from DIR or --kaggle DIR; see $program --help"
[ -z "$from" ] || [ -z "$kaggle" ] || die 2 "--from and --kaggle exclude each other"

# archive NAME MD5: the path of one of image-net.org's files, checked.
archive() {
    [ -f "$from/$1" ] || die 3 "$from/$1: no such file; download it from https://image-net.org/download-images"
    if [ "$checksum" = yes ]; then verify md5 "$from/$1" "$2"; fi
}

# Writes $work/synsets.tsv: ILSVRC id, wnid, words.
write_synsets() {
    if [ -n "$synsets" ]; then
        [ -f "$synsets" ] || die 3 "--synsets $synsets: no such file"
        cp "$synsets" "$work/synsets.tsv"
    else
        command -v python3 >/dev/null 2>&1 ||
            die 1 "meta.mat takes python3 to read, which is not installed; install it, or give --synsets FILE"
        python3 "$here/meta_synsets.py" "$work/devkit/meta.mat" >"$work/synsets.tsv.part" ||
            die 3 "the devkit's meta.mat cannot be read (reason above); give --synsets FILE"
        mv "$work/synsets.tsv.part" "$work/synsets.tsv"
    fi
    awk -F '\t' 'NF != 3 || $1 !~ /^[0-9]+$/ || $2 !~ /^n[0-9]+$/ { print NR; exit }' "$work/synsets.tsv" |
        while read -r line; do
            die 3 "line $line of ${synsets:-the list of classes} is not 'ILSVRC id TAB wnid TAB words'"
        done
}

unpack_devkit() {
    local path
    rm -rf "$work/devkit"
    mkdir "$work/devkit" "$work/devkit/raw"
    tar -xzf "$from/ILSVRC2012_devkit_t12.tar.gz" -C "$work/devkit/raw" ||
        die 3 "$from/ILSVRC2012_devkit_t12.tar.gz: tar cannot unpack it (reason above); fetch it again"
    for name in ILSVRC2012_validation_ground_truth.txt meta.mat; do
        path=$(find "$work/devkit/raw" -type f -name "$name" | head -n 1)
        if [ -n "$path" ]; then
            mv "$path" "$work/devkit/$name"
        elif [ "$name" != meta.mat ] || [ -z "$synsets" ]; then
            die 3 "$from/ILSVRC2012_devkit_t12.tar.gz: holds no $name; this is not the devkit of tasks 1 and 2"
        fi
    done
}

# The outer archive holds one archive a class; each is read out of it as a stream, so no second copy is needed.
unpack_train() {
    local outer=$from/ILSVRC2012_img_train.tar wnid done_before=0
    tar -tf "$outer" >"$work/train.list" || die 3 "$outer: tar cannot read it (reason above); fetch it again"
    mkdir -p "$work/train"
    while read -r member; do
        wnid=$(basename "$member" .tar)
        case $member in *.tar) ;; *) die 3 "$outer: holds '$member', wanted one <wnid>.tar a class" ;; esac
        if [ -d "$work/train/$wnid" ]; then
            done_before=$((done_before + 1))
            continue
        fi
        rm -rf "$work/train.class"
        mkdir "$work/train.class"
        tar -xOf "$outer" "$member" | tar -xf - -C "$work/train.class" ||
            die 3 "$outer: $member cannot be unpacked (reason above); check the disk's space, or fetch the archive again"
        mv "$work/train.class" "$work/train/$wnid"
        note "train: $wnid ($(count_folders "$work/train") classes)"
    done <"$work/train.list"
    [ "$done_before" -eq 0 ] || note "train: $done_before classes were unpacked before"
}

# Writes $work/val.tsv: file name TAB wnid, from the devkit's ground truth (line i is the ILSVRC id of image i).
val_labels_from_devkit() {
    awk -F '\t' -v OFS='\t' '
        NR == FNR { wnid[$1] = $2; next }
        !($1 in wnid) { printf "line %d: class %s is not in the list of classes\n", FNR, $1 >"/dev/stderr"; exit 1 }
        { printf "ILSVRC2012_val_%08d.JPEG\t%s\n", FNR, wnid[$1] }
    ' "$work/synsets.tsv" "$work/devkit/ILSVRC2012_validation_ground_truth.txt" >"$work/val.tsv" ||
        die 3 "the devkit's ILSVRC2012_validation_ground_truth.txt does not fit (reason above)"
}

# sort_val FOLDER HOW...: files of the flat folder go to $work/val/<wnid>/ by the command HOW (mv, or a linking copy).
sort_val() {
    local flat=$1 target
    # shellcheck disable=SC2016 # for the inner shell: $0 is the folder, then the command and the files
    local files_to_target='target=$0; "$@" "$target"'
    shift
    target=$(absolute "$work/val")
    rm -rf "$work/val"
    mkdir "$work/val"
    cut -f 2 "$work/val.tsv" | sort -u >"$work/val.classes"
    while read -r wnid; do
        mkdir "$work/val/$wnid"
        awk -F '\t' -v wnid="$wnid" '$2 == wnid { print $1 }' "$work/val.tsv" |
            (cd "$flat" && xargs sh -c "$files_to_target" "$target/$wnid" "$@") ||
            die 3 "$flat: validation images of $wnid are missing (names above)"
    done <"$work/val.classes"
}

unpack_val() {
    if [ -d "$work/val" ] && [ ! -d "$work/val.flat" ] && [ "$(count_files "$work/val")" = "$expect_val" ]; then
        note "val: unpacked before"
        return
    fi
    rm -rf "$work/val.flat"
    mkdir "$work/val.flat"
    note "val: unpacking"
    tar -xf "$from/ILSVRC2012_img_val.tar" -C "$work/val.flat" ||
        die 3 "$from/ILSVRC2012_img_val.tar: tar cannot unpack it (reason above); fetch it again"
    sort_val "$work/val.flat" mv
    [ "$(count_files "$work/val.flat")" = 0 ] ||
        die 3 "$from/ILSVRC2012_img_val.tar: holds $(count_files "$work/val.flat") images more than the ground truth"
    rm -rf "$work/val.flat"
}

from_imagenet() {
    archive ILSVRC2012_devkit_t12.tar.gz fa75699e90414af021442c21a62c3abf
    archive ILSVRC2012_img_val.tar 29b22e2961454d5413ddabcf34fc5622
    archive ILSVRC2012_img_train.tar 1d675b47d978889d74fa0da5fadfb00e
    unpack_devkit
    write_synsets
    val_labels_from_devkit
    unpack_val
    unpack_train
    cut -f 2,3 "$work/synsets.tsv" | sort >"$work/classes.txt"
}

# `cp -l` makes hard links; where the output is on another disk, or cp has no -l, files are copied.
link_or_copy() {
    if cp -Rl "$kaggle/LOC_synset_mapping.txt" "$work/probe" 2>/dev/null; then
        rm -f "$work/probe"
        echo "cp -Rl"
    else
        note "files cannot be linked from $kaggle to $output (another disk?): copying them"
        echo "cp -R"
    fi
}

from_kaggle() {
    local images=$kaggle/ILSVRC/Data/CLS-LOC how folder
    for path in "$images/train" "$images/val" "$kaggle/LOC_val_solution.csv" "$kaggle/LOC_synset_mapping.txt"; do
        [ -e "$path" ] || die 3 "$path: no such file or folder; --kaggle wants the unpacked challenge"
    done
    how=$(link_or_copy)
    awk -F '[ ,]' -v OFS='\t' 'FNR > 1 && NF >= 2 { print $1 ".JPEG", $2 }' "$kaggle/LOC_val_solution.csv" \
        >"$work/val.tsv"
    # shellcheck disable=SC2086 # two words on purpose
    sort_val "$images/val" $how
    mkdir -p "$work/train"
    for folder in "$images/train"/*/; do
        folder=${folder%/}
        [ ! -d "$work/train/$(basename "$folder")" ] || continue
        rm -rf "$work/train.class"
        $how "$folder" "$work/train.class"
        mv "$work/train.class" "$work/train/$(basename "$folder")"
    done
    tr -d '\r' <"$kaggle/LOC_synset_mapping.txt" |
        awk '{ wnid = $1; sub(/^[^ ]+ +/, ""); print wnid "\t" $0 }' | sort >"$work/classes.txt"
}

# check WHAT GOT WANTED
check() {
    [ "$2" = "$3" ] || die 3 "$work: $1: $2, wanted $3; archives incomplete? It is kept: run this again once they are whole"
}

here=$(cd "$(dirname "$0")" && pwd -P)
need tar
need awk
say_how_to_train() {
    printf 'ImageNet is ready in %s. Train on it:\n' "$output"
    printf '    cargo run --release -- train --config configs/RECIPE.toml --data %q --output runs/imagenet\n' "$output"
}
if [ -f "$output/classes.txt" ] && [ -d "$output/train" ] && [ -d "$output/val" ]; then
    note "$output is prepared already"
    say_how_to_train
    exit 0
fi
[ ! -d "$output" ] || rmdir "$output" 2>/dev/null ||
    die 1 "$output exists and is not a finished ImageNet; choose another --output or delete it"
work=$output.partial
mkdir -p "$work" || die 1 "cannot create $work; choose another --output"
if [ -n "$from" ]; then from_imagenet; else from_kaggle; fi
check "classes in classes.txt" "$(wc -l <"$work/classes.txt" | tr -d ' ')" "$expect_classes"
check "training classes" "$(count_folders "$work/train")" "$expect_classes"
check "validation classes" "$(count_folders "$work/val")" "$expect_classes"
check "validation images" "$(count_files "$work/val")" "$expect_val"
check "training images" "$(count_files "$work/train")" "$expect_train"
find "$work" -mindepth 1 -maxdepth 1 ! -name train ! -name val ! -name classes.txt -exec rm -rf {} +
mv "$work" "$output"
say_how_to_train
