#!/usr/bin/env bash
# User data of an EC2 instance: installs what training needs, then trains under systemd until the run is finished.
# Paste it as the instance's user data with the settings below filled in, or run it as root on a fresh instance.
#
# Image: P3 (V100) wants a driver that still knows Volta: AWS's "Deep Learning Base Proprietary Nvidia Driver AMI (Amazon Linux 2)"
# lists P3 with driver 570 and CUDA 12. G4dn (T4) and later take any Deep Learning Base OSS Nvidia Driver AMI.
# V100 also wants cuDNN 9.10.2 or older (9.11 dropped Volta): `engine doctor` says so where it is another.
set -euo pipefail

REPOSITORY=${REPOSITORY:-}         # https address of the public repository
DATA_DIR=${DATA_DIR:-}             # ImageNet as datasets/prepare_imagenet.sh or sync_to_ec2.sh lays it out; empty: drawn shapes
DATA_FROM=${DATA_FROM:-}           # s3://BUCKET/PREFIX: datasets/sync_to_ec2.sh brings DATA_DIR from there first
CONFIG=${CONFIG:-}                 # default: configs/resnet50-90-nvidia.toml, and configs/debug.toml for drawn shapes
OUTPUT_DIR=${OUTPUT_DIR:-/data/run} # on a volume that outlives the instance
OUTPUT_REMOTE=${OUTPUT_REMOTE:-}   # s3://BUCKET/PREFIX: checkpoints and logs go there too (the role's policy: configs/cloud/README.md)
PRICE=${PRICE:-}                   # dollars an hour; default: the spot price of now, where aws may ask for it
DOLLARS=${DOLLARS:-0}              # the run ends when they are spent; 0: it does not
RUN_AS=${RUN_AS:-}                 # default: the image's user (ec2-user, ubuntu, admin)

say() { printf 'ec2_user_data.sh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

[ "$(id -u)" = 0 ] || fail "run it as root (user data is)"
if [ -z "$CONFIG" ] && [ -n "$DATA_DIR" ]; then CONFIG=configs/resnet50-90-nvidia.toml; fi
CONFIG=${CONFIG:-configs/debug.toml}
case $(systemctl is-system-running 2>/dev/null) in
'' | offline) fail "systemd does not run here (a container?): README says how to train by hand" ;;
esac
[ -z "$DATA_FROM" ] || [ -n "$DATA_DIR" ] || fail "DATA_FROM is set and DATA_DIR is not: where shall the data go?"
[ -n "$REPOSITORY" ] || fail "REPOSITORY is empty; set it to the https address of the repository"
if [ -z "$RUN_AS" ]; then
    for name in ec2-user ubuntu admin; do
        if id "$name" >/dev/null 2>&1; then RUN_AS=$name; break; fi
    done
fi
[ -n "$RUN_AS" ] || fail "none of the users ec2-user, ubuntu and admin is here; set RUN_AS"
home=$(getent passwd "$RUN_AS" | cut -d: -f6) || true
[ -n "$home" ] || fail "RUN_AS=$RUN_AS: no such user"
as_user() { (cd "$home" && runuser -u "$RUN_AS" -- env HOME="$home" USER="$RUN_AS" bash -o pipefail -c "$1"); }
[ -z "$DATA_DIR" ] || [ -n "$DATA_FROM" ] || [ -e "$DATA_DIR" ] ||
    fail "DATA_DIR=$DATA_DIR: no such folder; set DATA_FROM, or bring the data first"

if command -v apt-get >/dev/null 2>&1; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy git gcc g++ curl cmake nasm tmux
else
    yum install -qy git gcc gcc-c++ curl cmake nasm tmux || yum install -qy git gcc gcc-c++ curl tmux
fi
as_user "command -v ~/.cargo/bin/cargo >/dev/null || curl -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal" || true
as_user "\$HOME/.cargo/bin/cargo --version >/dev/null" || fail "Rust was not installed: is https://sh.rustup.rs reachable from here?"
as_user "[ -d ~/engine ] || git clone '$REPOSITORY' ~/engine" || fail "$REPOSITORY: cannot be cloned (reason above)"
as_user "cd ~/engine && [ -f '$CONFIG' ]" || fail "CONFIG=$CONFIG: no such file in $REPOSITORY"
# libjpeg-turbo decodes half again as fast; the pure-Rust decoder needs no cmake and nasm.
features=''
if command -v cmake >/dev/null 2>&1 && command -v nasm >/dev/null 2>&1; then features='--features turbojpeg'; fi
as_user "cd ~/engine && ~/.cargo/bin/cargo build --release $features"
install -d -o "$RUN_AS" "$OUTPUT_DIR"
as_user "OUTPUT_REMOTE='$OUTPUT_REMOTE' \$HOME/engine/target/release/engine doctor --output '$OUTPUT_DIR'" || true
if [ -n "$DATA_FROM" ]; then
    install -d -o "$RUN_AS" "$DATA_DIR"
    as_user "\$HOME/engine/datasets/sync_to_ec2.sh --from '$DATA_FROM' --to '$DATA_DIR'" || fail "$DATA_FROM: the data are not here (reason above)"
fi
# Without a price there is no budget to end at.
if [ -z "$PRICE" ]; then PRICE=$(as_user "\$HOME/engine/configs/cloud/spot_price.sh") || PRICE=0; fi
[ "$PRICE" != 0 ] || [ "$DOLLARS" = 0 ] || fail "DOLLARS=$DOLLARS without a price: set PRICE"

# Exit codes of engine: 75 stopped with a checkpoint, 70 the device failed: again. 1, 2 and 3 want a person.
# On a shutdown, that of a reclaimed spot instance too, systemd sends SIGTERM: engine saves and exits with 75.
cat >/etc/systemd/system/engine-train.service <<UNIT
[Unit]
Description=engine train $CONFIG
After=network-online.target local-fs.target
Wants=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=20

[Service]
User=$RUN_AS
WorkingDirectory=$home/engine
Environment=DATA_DIR=$DATA_DIR OUTPUT_DIR=$OUTPUT_DIR OUTPUT_REMOTE=$OUTPUT_REMOTE
ExecStart=$home/engine/target/release/engine train --config $CONFIG --resume auto --set stop.price=$PRICE --set stop.dollars=$DOLLARS
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=1 2 3
KillSignal=SIGTERM
TimeoutStopSec=100

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now engine-train.service
say "training: journalctl -fu engine-train, tail -f $OUTPUT_DIR/logs.md"
