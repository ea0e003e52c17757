#!/usr/bin/env bash
# Lays training and nvidia-smi out in one terminal, to be photographed. Needs tmux.
set -euo pipefail

output=${OUTPUT_DIR:-.}
case ${1:-} in
--help | -h)
    cat <<'TEXT'
ec2_screenshot.sh: a tmux session with `tail -f logs.md` above and `nvidia-smi` below, refreshed every second.

    OUTPUT_DIR=/data/run experiments/ec2_screenshot.sh

Take the picture of the terminal, save it as ec2_screenshots/ec2_training_screenshot.png, and say in that folder's README which
instance, region and date it shows. Leave tmux with Ctrl-b d; the training does not notice.
TEXT
    exit 0
    ;;
esac
command -v tmux >/dev/null 2>&1 || { echo "ec2_screenshot.sh: tmux is not installed (apt-get or yum install tmux)" >&2; exit 1; }
command -v watch >/dev/null 2>&1 || { echo "ec2_screenshot.sh: watch is not installed (apt-get install procps, yum install procps-ng)" >&2; exit 1; }
command -v nvidia-smi >/dev/null 2>&1 || { echo "ec2_screenshot.sh: no nvidia-smi: this machine has no NVIDIA driver" >&2; exit 1; }
[ -f "$output/logs.md" ] || { echo "ec2_screenshot.sh: $output/logs.md: no such file; set OUTPUT_DIR to the training's" >&2; exit 1; }
{ [ -t 0 ] && [ -t 1 ]; } || { echo "ec2_screenshot.sh: this is no terminal: log in with ssh -t and run it there" >&2; exit 1; }

session=engine-screenshot
tmux kill-session -t "$session" 2>/dev/null || true
tmux new-session -d -s "$session" "printf '%s  %s\n' \"\$(hostname)\" \"\$(date -u)\"; tail -n 20 -f '$output/logs.md'"
tmux split-window -v -t "$session" "watch -n 1 nvidia-smi"
exec tmux attach -t "$session"
