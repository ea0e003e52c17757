#!/usr/bin/env bash
# Commits and pushes logs.md and curve.svg every N epochs, so that a grader sees the progress. `--help` says the rest.
set -euo pipefail

usage() {
    cat <<'TEXT'
push_logs.sh: watch a run's logs.md; every N new epochs copy it and curve.svg into the repository, commit and push.

    OUTPUT_DIR=/data/run experiments/push_logs.sh [--every N] [--once] [--no-push]

  --every N   epochs between two commits (default: 5); the last ones are pushed when the log has said nothing for an hour
  --once      now, if there is anything new, and end
  --no-push   commit only
  --help      this text

Needs git with user.name and user.email, and the right to push (a deploy key or a token in the remote's address). A push that fails is tried again with the next.
TEXT
}

every=5 once=no push=yes
while [ $# -gt 0 ]; do
    case $1 in
    --every)
        [ $# -ge 2 ] || { echo "push_logs.sh: --every wants a number" >&2; exit 2; }
        every=$2
        shift 2
        ;;
    --once) once=yes; shift ;;
    --no-push) push=no; shift ;;
    --help | -h) usage; exit 0 ;;
    *) echo "push_logs.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
done
case $every in '' | *[!0-9]* | 0) echo "push_logs.sh: --every $every: expected a number from 1" >&2; exit 2 ;; esac
fail() { echo "push_logs.sh: $*" >&2; exit 1; }
repository=$(cd "$(dirname "$0")/.." && pwd -P)
output=${OUTPUT_DIR:-$repository}
[ -f "$output/logs.md" ] || fail "$output/logs.md: no such file; set OUTPUT_DIR to the training's"
output=$(cd "$output" && pwd -P)
cd "$repository"
command -v git >/dev/null 2>&1 || fail "git is not installed (apt-get or yum install git)"
git rev-parse --git-dir >/dev/null 2>&1 || fail "$repository is no clone that git takes; git -C $repository status says why"
git var GIT_COMMITTER_IDENT >/dev/null 2>&1 ||
    fail "git does not know who commits: git config user.name NAME && git config user.email ADDRESS"
[ "$push" = no ] || [ -n "$(git remote)" ] || fail "the clone has no remote to push to: git remote add origin ADDRESS, or --no-push"

epochs() { grep -c '^epoch: ' "$1" 2>/dev/null || true; }

publish() {
    local count=$1 file files=()
    for file in logs.md curve.svg; do
        if [ -f "$output/$file" ] && [ "$output" != "$repository" ]; then cp "$output/$file" "$repository/$file"; fi
        if [ -f "$file" ]; then files+=("$file"); fi
    done
    # A curve is among what git ignores: runs leave one everywhere.
    git add -f "${files[@]}"
    if git diff --cached --quiet -- "${files[@]}"; then
        echo "$(date -u +%FT%TZ) nothing new: $count epochs"
        return
    fi
    git commit --quiet -m "Log of $count epochs" -- "${files[@]}"
    if [ "$push" = no ]; then
        echo "$(date -u +%FT%TZ) committed: $count epochs"
    elif git push --quiet; then
        echo "$(date -u +%FT%TZ) pushed: $count epochs"
    else
        echo "push_logs.sh: $count epochs are committed, but the push failed; it is tried again with the next ones" >&2
    fi
}

if [ "$once" = yes ]; then
    publish "$(epochs "$output/logs.md")"
    exit 0
fi
pushed=$(git show HEAD:logs.md 2>/dev/null | grep -c '^epoch: ' || true)
quiet=0
while :; do
    now=$(epochs "$output/logs.md")
    if [ $((now - pushed)) -ge "$every" ] || { [ "$now" -gt "$pushed" ] && [ "$quiet" -ge 60 ]; }; then
        publish "$now"
        pushed=$now quiet=0
    fi
    sleep 60
    if [ "$(epochs "$output/logs.md")" = "$now" ]; then quiet=$((quiet + 1)); else quiet=0; fi
done
