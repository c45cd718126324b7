#!/usr/bin/env bash
# Trains on a GKE cluster with TPUs, one slice or several, as a JobSet that XPK writes and submits.
#
#   CLUSTER=my-cluster PROJECT=my-project ZONE=us-east5-a IMAGE=REGION-docker.pkg.dev/my-project/images/jukebox-jax \
#       ./gke_xpk.sh 5b v6e-64 --config configs/prior.py:5b --data gs://my-bucket/tokens
#
# Once before: `xpk cluster create`, and a Filestore share attached with `xpk storage` so that it is mounted at
# /mnt/runs. Without XPK: jobset.yaml beside this script.
set -euo pipefail

NAME=$1 ACCELERATOR=$2
shift 2
: "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${IMAGE:?}"

cd "$(dirname "$0")/../.."
docker build --tag "$IMAGE" --file experiments/launch/Dockerfile .
docker push "$IMAGE"

xpk workload create --workload "$NAME" --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" \
    --tpu-type "$ACCELERATOR" --num-slices "${SLICES:-1}" --docker-image "$IMAGE" \
    --max-restarts 1000 --termination-grace-period-seconds 120 \
    --command "experiments/launch/restartable.sh jukebox-jax train --hosts auto --wait-minutes 20 \
--compile-cache /mnt/runs/compiled --quiet --out /mnt/runs/$NAME$(printf ' %q' "$@")"
