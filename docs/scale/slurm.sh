#!/usr/bin/env bash
# Workers of one study, a task of the array each:
#
#     sbatch --array=0-7 docs/scale/slurm.sh STUDY                  # measure
#     sbatch --array=0-3 --gres=none docs/scale/slurm.sh STUDY --no-gpu   # build and prove ahead of those
#
# Where the database is stands in ~/.pg_service.conf, its password in ~/.pgpass: neither in this file, nor in a log, nor
# in the list of processes.
#SBATCH --job-name=evoengine
#SBATCH --output=evoengine-%A_%a.log
#SBATCH --array=0-3
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
# Two minutes before the time is over: finish the verdict in flight, give back the rest.
#SBATCH --signal=B:TERM@120
set -euo pipefail

study=${1:?give the name of the study}
shift

# On the node's own disk: locks of the build cache need not work on a network file system.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export EVOENGINE_HOME="$cache"

# The worker is told what the shell is told, and waited for again: a wait that a signal ends is over before it is.
evoengine worker --storage "postgresql+psycopg:///?service=evoengine" --study "$study" --until-done \
    --jobs "${SLURM_CPUS_PER_TASK:-8}" "$@" &
worker=$!
told=
trap 'told=yes; kill -TERM "$worker"' TERM INT
code=0
wait "$worker" || code=$?
while [[ -n $told ]]; do
    told=
    code=0
    wait "$worker" || code=$?
done
# 130: stopped before the study was done. That is no failure of the task; another array goes on where it was.
if [[ $code -ne 130 ]]; then
    exit "$code"
fi
