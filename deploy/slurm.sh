#!/bin/bash
# Pretraining on several nodes of a Slurm cluster: sbatch deploy/slurm.sh, from the checkout.
# Two minutes before the time limit it saves its state and queues itself again; see docs/cluster.md.
#SBATCH --job-name=maestro
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=maestro-%j.log
set -uo pipefail

PROCESSES=${PROCESSES:-8}  # on each node: one per GPU
LOCAL=${LOCAL:-}           # a folder on each node's own disk, to copy the shards to; empty: read them here
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-$PROCESSES} / PROCESSES))
# Time to save, from the signal on; and processes that start again must not meet the old ones.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Runs once on each node: torchrun's agent, in the checkout or in a copy with local shards.
# shellcheck disable=SC2329  # srun calls it
on_node() {
    if [ -n "$LOCAL" ]; then
        local here="$LOCAL/maestro-$SLURM_JOB_ID"
        mkdir -p "$here/data"
        ln -sfn "$PWD"/* "$PWD/.git" "$here/" 2>/dev/null # all but data, which is there already
        ln -sfn "$PWD/data/validation" "$here/data/"
        cp -r --update "$PWD/data/shards" "$here/data/"
        cd "$here" || return 1
    fi
    exec torchrun \
        --nnodes="$SLURM_NNODES" --nproc-per-node="$PROCESSES" \
        --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29400" --rdzv-id="$SLURM_JOB_ID" \
        --rdzv-conf=read_timeout=600 --max-restarts=3 \
        -m pipelines.stages.pretrain
}

mkdir -p runs artifacts
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD PROCESSES LOCAL
export -f on_node
srun bash -c on_node &
step=$!

queue_again=
trap 'queue_again=1; kill -TERM "$step"' USR1 # srun hands it to every agent, and they to all processes
wait "$step"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do # the trap ended `wait`, not the step
    wait "$step"
    code=$?
done
if [ -n "$queue_again" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
