# shellcheck shell=bash
# What the preparation scripts share: messages, checksums, counting. Sourced, never run.

program=$(basename "$0")

note() { printf '%s\n' "$*" >&2; }

# die CODE MESSAGE: 2 is a wrong command line, 3 is bad input data, 1 is everything else (as `engine` itself).
die() {
    local code=$1
    shift
    note "$program: $*"
    exit "$code"
}

# need PROGRAM [WHERE IT COMES FROM]
need() {
    command -v "$1" >/dev/null 2>&1 ||
        die 1 "the program '$1' is not installed; install it${2:+ ($2)}, then run this again"
}

# value_of OPTION "$@": the argument that follows an option.
value_of() {
    [ $# -ge 3 ] || die 2 "$1 wants a value; see $program --help"
    printf '%s' "$3"
}

# digest md5|sha256 FILE
digest() {
    local kind=$1 file=$2
    if command -v "${kind}sum" >/dev/null 2>&1; then
        "${kind}sum" <"$file" | cut -d' ' -f1
    elif command -v openssl >/dev/null 2>&1; then
        openssl dgst "-$kind" <"$file" | sed 's/.*= *//'
    else
        die 1 "neither ${kind}sum nor openssl is installed, so $file cannot be checked; install coreutils"
    fi
}

# verify md5|sha256 FILE WANTED
verify() {
    local kind=$1 file=$2 wanted got
    wanted=$(printf '%s' "$3" | tr 'A-F' 'a-f')
    note "checking the $kind of $file"
    got=$(digest "$kind" "$file")
    [ "$got" = "$wanted" ] ||
        die 3 "$file: its $kind is $got, wanted $wanted; the file is damaged or another version: fetch it again"
}

# Number of regular files below a folder; links to files count, as they do for the trainer.
count_files() { find -L "$1" -type f ! -name '.*' | wc -l | tr -d ' '; }

# Number of folders directly inside a folder.
count_folders() { find -L "$1" -mindepth 1 -maxdepth 1 -type d ! -name '.*' | wc -l | tr -d ' '; }

# absolute PATH: without `realpath`, which not every system has. The parent must exist.
absolute() { (cd "$(dirname "$1")" && printf '%s/%s' "$(pwd -P)" "$(basename "$1")"); }
