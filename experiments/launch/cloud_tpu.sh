#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several, obtained as queued resources; on Spot capacity until the run is done.
#
#   PROJECT=my-project ZONE=us-east5-a RUNS_NFS=10.0.0.2:/runs \
#       ./cloud_tpu.sh 5b v5p-128 --config configs/prior.py:5b --data gs://my-bucket/tokens
#
# The name is also the run's. The run folder lies on a shared disk (Filestore) that every host mounts at /mnt/runs.
# Started again, it goes on where it was: this script keeps nothing.
set -euo pipefail

NAME=$1 ACCELERATOR=$2
shift 2
: "${PROJECT:?}" "${ZONE:?}" "${RUNS_NFS:?ADDRESS:/SHARE of the disk for run folders}"
SLICES=${SLICES:-1}
SPOT=${SPOT-yes} # empty: on-demand or reserved capacity
SOURCE=${SOURCE:-https://github.com/OWNER/jukebox_jax}

case $ACCELERATOR in
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    *) echo "$ACCELERATOR: give v5litepod-N (v5e), v5p-N (N counts cores, two a chip) or v6e-N." >&2 && exit 2 ;;
esac

tpus() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }

state() { tpus queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || echo ABSENT; }

request() {
    local nodes=(--node-id="$NAME")
    if ((SLICES > 1)); then
        nodes=(--node-prefix="$NAME" --node-count="$SLICES")
    fi
    tpus queued-resources create "$NAME" "${nodes[@]}" --accelerator-type="$ACCELERATOR" \
        --runtime-version="$RUNTIME" ${SPOT:+--spot}
}

# The same command on every host of one slice, at once. Fails if one of them does.
everywhere() { tpus tpu-vm ssh "$1" --worker=all --command="$2"; }

# What a fresh VM lacks; done twice, it changes nothing.
PREPARE="set -e
command -v python3.11 >/dev/null || { sudo apt-get update -q; sudo apt-get install -qy python3.11-venv nfs-common; }
sudo mkdir -p /mnt/runs
mountpoint -q /mnt/runs || sudo mount -t nfs $RUNS_NFS /mnt/runs
[ -d jukebox_jax ] || git clone -q --depth 1 $SOURCE jukebox_jax
cd jukebox_jax
[ -d .venv ] || python3.11 -m venv .venv
.venv/bin/pip install -q -c constraints.txt -e '.[tpu,gcs]'"

# Between slices, libtpu finds the way by itself (the VMs bring MEGASCALE_*); --hosts auto reads it there, too.
TRAIN="cd jukebox_jax && PATH=\$PWD/.venv/bin:\$PATH experiments/launch/restartable.sh jukebox-jax train \
--hosts auto --wait-minutes 20 --compile-cache /mnt/runs/compiled --quiet --out /mnt/runs/$NAME$(printf ' %q' "$@")"

while :; do
    case $(state) in
        ABSENT) request ;;
        ACTIVE)
            slices=("$NAME")
            if ((SLICES > 1)); then
                slices=()
                for ((slice = 0; slice < SLICES; slice++)); do slices+=("$NAME-$slice"); done
            fi
            children=() done_=yes
            for slice in "${slices[@]}"; do everywhere "$slice" "$PREPARE" & children+=($!); done
            for child in "${children[@]}"; do wait "$child" || done_=; done
            if [[ -n $done_ ]]; then
                children=()
                for slice in "${slices[@]}"; do everywhere "$slice" "$TRAIN" & children+=($!); done
                for child in "${children[@]}"; do wait "$child" || done_=; done
            fi
            if [[ -n $done_ ]]; then
                echo "$NAME is done: give its machines back with" \
                    "gcloud compute tpus queued-resources delete $NAME --force --project=$PROJECT --zone=$ZONE"
                exit 0
            fi
            ;;
        # Spot machines that were taken away, and requests that came to nothing, stay in the list until deleted.
        SUSPENDED | FAILED) tpus queued-resources delete "$NAME" --force --quiet ;;
    esac
    sleep "${POLL_SECONDS:-60}"
done
