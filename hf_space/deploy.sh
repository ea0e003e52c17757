#!/usr/bin/env bash
# Puts the page on a Hugging Face Space: stages a folder, creates the Space, uploads, waits for its build, asks it once, and
# writes its address to hf_space_link.txt.
#
#     HF_TOKEN=... hf_space/deploy.sh USER/SPACE --model model.engine [--run DIR] [--sdk docker|gradio] [--classify BINARY] [--private]
#     hf_space/deploy.sh --stage DIR --model model.engine ...        fills DIR and uploads nothing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")

fail() { printf 'deploy.sh: %s\n' "$1" >&2; exit 2; }

space='' model='' run='' sdk=docker classify=$root/target/release/classify stage='' private=()
while [ $# -gt 0 ]; do
    case $1 in
        --model | --run | --sdk | --classify | --stage)
            [ $# -ge 2 ] || fail "$1 has no value"
            declare "${1#--}=$2"
            shift 2 ;;
        --private) private=(--private); shift ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) fail "there is no option $1; --help lists them" ;;
        *) [ -z "$space" ] || fail "one Space at a time: $space, then $1"; space=$1; shift ;;
    esac
done
case $sdk in docker | gradio) ;; *) fail "--sdk is docker or gradio, not $sdk" ;; esac
[ -n "$model" ] || fail "--model is missing: the file that 'engine export --format cpu' wrote"
[ -f "$model" ] || fail "there is no model $model"
[ -z "$run" ] || [ -d "$run" ] || fail "--run $run is no folder"
if [ -z "$stage" ]; then
    [[ $space =~ ^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$ ]] || fail "which Space? USER/NAME is wanted, got '$space'"
    python3 -c 'import huggingface_hub, gradio_client' 2>/dev/null ||
        fail "Python lacks what is needed: pip install -r hf_space/requirements.txt"
    python3 -c 'import sys, huggingface_hub as hub; sys.exit(hub.get_token() is None)' ||
        fail "no Hugging Face token: set HF_TOKEN to one with write access (Settings, Access Tokens), or run 'hf auth login'. Nothing was created"
fi

# glibc that the binary asks for at least, such as 2.17.
needs() { grep -ao 'GLIBC_2\.[0-9]*' "$1" | sed 's/GLIBC_//' | sort -uV | tail -n 1; }

stage_app() {
    mkdir -p "$1"
    cp "$here"/{app,answers,classifier,page,result,about,explain,examples,settings}.py "$here"/{style.css,requirements.txt} "$1"
    cp "$model" "$1/model.engine"
    if [ -n "$run" ]; then
        for name in logs.md curve.svg; do
            [ ! -f "$run/$name" ] || cp "$run/$name" "$1"
        done
    fi
    # Photographs suit a network of photographs; where the package cannot be had, the page draws its own.
    python3 "$here/examples.py" "$1/examples" || { rm -rf "$1/examples"; echo "no photographs: the page draws its examples" >&2; }
}

folder=${stage:-$(mktemp -d)}
[ -z "$stage" ] || mkdir -p "$stage"
[ -z "$(ls -A "$folder")" ] || fail "$folder is not empty"
[ -n "$stage" ] || trap 'rm -rf "$folder"' EXIT
if [ "$sdk" = docker ]; then
    stage_app "$folder/app"
    cp "$here/Dockerfile" "$here/README.md" "$folder"
    # What cargo asks for: the manifest names benchmarks and tests.
    (cd "$root" && git archive HEAD Cargo.toml Cargo.lock build.rs src bench kernels tests) | tar -x -C "$folder" --one-top-level=engine
else
    [ -f "$classify" ] || fail "there is no binary $classify: build it, or take the one of a release with --classify"
    wanted=$(needs "$classify")
    # Debian 12, the oldest that Spaces run on, has 2.36.
    printf '%s\n2.36\n' "${wanted:-2.0}" | sort -CV ||
        fail "$classify needs glibc $wanted, Spaces have 2.36: take the binary of a release"
    stage_app "$folder"
    cp "$classify" "$folder/classify"
    chmod 755 "$folder/classify"
    { cat "$here/front_matter.gradio.yaml"; sed '1,/^---$/d' "$here/README.md"; } >"$folder/README.md"
fi
echo "staged for $sdk: $(du -sh "$folder" | cut -f1) in $folder" >&2
[ -z "$stage" ] || exit 0
python3 "$here/publish.py" "$space" "$folder" --sdk "$sdk" "${private[@]}"
