#!/bin/bash
# A Ray cluster over the nodes of a Slurm allocation, and one command of fgvr on it (docs/scale.md):
#
#     sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=4:00:00 scripts/ray_on_slurm.sh mode=evaluate models=photos ...
#
# The first node is the head and the driver. Every node needs the same environment, and images and models at the same paths. A job that ran
# out of time goes on where it was: submit the same command again.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail

if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    echo "error: this is no Slurm allocation: sbatch --nodes=2 $0 mode=evaluate ..." >&2
    exit 2
fi
if [ $# -eq 0 ]; then
    echo "error: what shall run? sbatch $0 mode=evaluate dataset=folder dataset.root=FOLDER ..." >&2
    exit 2
fi

export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN # other users of these machines stay out

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false --block &
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap ray start --address="$address:$port" --block &
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

for _ in $(seq 120); do # until all nodes are there
    up=$(srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap ray status --address="$address:$port" 2>/dev/null | grep -c ' 1 node_' || true)
    [ "$up" -ge "${#nodes[@]}" ] && break
    sleep 2
done
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    fgvr "$@" engine=ray engine.address="$address:$port"
