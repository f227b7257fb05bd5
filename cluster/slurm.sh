#!/usr/bin/env bash
# A run as a SLURM job, on a Ray cluster of the job's nodes, which comes and goes with it. Submit it from a checkout with .venv
# (`make setup`) that all nodes see; what follows the file's name is what follows `delphi train`.
#
#   sbatch --nodes=4 --time=24:00:00 cluster/slurm.sh --preset nethack_score run_dir=/shared/runs/first
#       actors.num_workers=60 learner.rollouts_per_batch=12 cluster.min_workers=15
#   sbatch --dependency=singleton ...       # the same again, once the job before it has ended: continues the run
#   scancel --batch --signal=TERM JOB       # stops it, with a checkpoint
#
# RAY_OPTIONS in the environment: further options of every `ray start`.
#
#SBATCH --job-name=delphi
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
: "${SLURM_JOB_ID:?is not set: submit this file with sbatch}"
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# This first node's address, a port that differs between jobs, and a token that only this job knows.
HEAD=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
PORT=$((20000 + SLURM_JOB_ID % 10000))
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
RAY_TEMPORARY=/tmp/ray-$SLURM_JOB_ID
export HEAD PORT RAY_AUTH_TOKEN RAY_TEMPORARY RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# Until Ray answers on the first node; fails after two minutes.
wait_for_head() {
    local deadline=$((SECONDS + 120))
    until (exec 3<> "/dev/tcp/$HEAD/$PORT") 2> /dev/null; do
        if ((SECONDS > deadline)); then
            echo "Ray did not start on the first node, $HEAD:$PORT, within two minutes" >&2
            return 1
        fi
        sleep 1
    done
}

# What each node runs until it is told to end: srun calls it.
# shellcheck disable=SC2329
node() {
    local options
    read -ra options <<< "--num-cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE} ${RAY_OPTIONS:-}"
    trap : TERM # Ray's own processes get it too; what they leave is removed after them
    if ((SLURM_NODEID == 0)); then
        ray start --block --head --node-ip-address="$HEAD" --port="$PORT" --temp-dir="$RAY_TEMPORARY" "${options[@]}" || true
    elif wait_for_head; then
        ray start --block --address="$HEAD:$PORT" "${options[@]}" || true
    fi
    rm -rf "$RAY_TEMPORARY"
}
export -f node wait_for_head

# Nodes may be lost without ending the others.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --export=ALL --no-kill --kill-on-bad-exit=0 --wait=0 \
    bash -c node &
nodes=$!
driver=
trap '[[ -z $driver ]] || kill -TERM "$driver" 2> /dev/null || true' TERM INT

status=1
if wait_for_head; then
    python -m cluster.train "$@" cluster.mode=connect cluster.address="$HEAD:$PORT" cluster.more_nodes=expected &
    driver=$!
    wait -n "$driver" "$nodes" || true # or a signal
    kill -0 "$nodes" 2> /dev/null || kill -TERM "$driver" 2> /dev/null || true
    while :; do
        status=0
        wait "$driver" || status=$?
        kill -0 "$driver" 2> /dev/null || break # else a signal ended the wait: the run writes its checkpoint
    done
fi
kill -TERM "$nodes" 2> /dev/null || true
wait "$nodes" || true
exit "$status"
