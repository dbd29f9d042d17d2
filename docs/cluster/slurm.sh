#!/usr/bin/env bash
#SBATCH --job-name=labtune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#
# One study in a Slurm allocation: starts Ray on its nodes, runs the study, and goes back into the
# queue when time is up before the study is.
#
#     sbatch docs/cluster/slurm.sh studies/norms.py --data-dir /shared/birds --results-dir /shared/results
#
# from the root of a checkout that all nodes see, after `make env`. Results go to
# RESULTS/<study>/slurm-<job id>/ unless --name says otherwise; the folder is one that all nodes see.
# 120 seconds before the limit Slurm sends SIGTERM to this script, which hands it to the study; the
# study keeps what is done and ends with 75, and this job is queued again.
set -uo pipefail
TRY_AGAIN=75

study=${1:?usage: sbatch docs/cluster/slurm.sh studies/NAME.py [OPTIONS]}
shift
name="slurm-$SLURM_JOB_ID" results=results named=
for ((i = 1; i <= $#; i++)); do
    next=$((i + 1))
    case "${!i}" in
    --name) name="${!next}" named=1 ;;
    --name=*) name="${!i#*=}" named=1 ;;
    --results-dir) results="${!next}" ;;
    --results-dir=*) results="${!i#*=}" ;;
    --resume | --address | --address=*)
        echo "slurm.sh gives --address and --resume itself: leave them out" >&2
        exit 2
        ;;
    esac
done
options=("$@")
[ "$named" ] || options+=(--name "$name")
[ ! -f "$results/$(basename "$study" .py)/$name/study.json" ] || options+=(--resume)

# Ports of this job's own, as other jobs may share a node; Ray's workers use 10002 to 19999.
port=$((20000 + SLURM_JOB_ID % 10000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
umask 077 # Ray's token is as good as a password
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_TMPDIR="/tmp/labtune-$SLURM_JOB_ID" # short: sockets in it have a path limit
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch
.venv/bin/ray get-auth-token --generate >/dev/null 2>&1 || true # into ~/.ray, if none is there
umask 022

start_ray() { # NODES SRUN-OPTIONS... -- RAY-OPTIONS...
    local nodes=$1 where=()
    shift
    while [ "$1" != -- ]; do where+=("$1") && shift; done
    shift
    # shellcheck disable=SC2016
    srun --overlap --nodes="$nodes" --ntasks="$nodes" "${where[@]}" bash -c '
        mkdir -p "$RAY_TMPDIR"
        .venv/bin/ray start --block "$@" &
        trap "kill -TERM $!" TERM
        wait $!
        wait $! # the signal ended the first wait
        rm -rf "$RAY_TMPDIR"' ray \
        --num-cpus="$SRUN_CPUS_PER_TASK" --dashboard-agent-listen-port=$((port + 20000)) "$@" &
    ray_steps+=($!)
}

listening() { (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; }

stop_ray() {
    [ ${#ray_steps[@]} = 0 ] || kill "${ray_steps[@]}" 2>/dev/null
    wait "${ray_steps[@]}" 2>/dev/null
}

# From here on Slurm's signal, however early, means: stop, and try again later.
ray_steps=() study_process='' stopping=''
trap 'stopping=1; [ -z "$study_process" ] || kill -TERM "$study_process" 2>/dev/null' TERM
start_ray 1 --nodelist="$head" -- --head --port="$port" --include-dashboard=false \
    --ray-client-server-port=$((port + 10000))
for _ in $(seq 120); do
    listening && break
    kill -0 "${ray_steps[0]}" 2>/dev/null || break
    sleep 1
done
listening || {
    echo "slurm.sh: Ray did not start on $head port $port; see above" >&2
    stop_ray
    exit 1
}
others=$((SLURM_JOB_NUM_NODES - 1))
[ "$others" = 0 ] || start_ray "$others" --exclude="$head" -- --address="$head:$port"
sleep "${LABTUNE_SETTLE:-15}" # nodes that come later are used as well

code=$TRY_AGAIN
if [ ! "$stopping" ]; then
    .venv/bin/python "$study" "${options[@]}" --address "$head:$port" &
    study_process=$!
    [ ! "$stopping" ] || kill -TERM "$study_process"
    wait "$study_process"
    code=$?
    # The signal ends a wait, not the study; the next wait has the study's own code, also when it
    # has ended meanwhile.
    while [ "$stopping" ] && [ "$code" -gt 128 ]; do
        wait "$study_process" 2>/dev/null
        again=$?
        [ "$again" = 127 ] || code=$again
        kill -0 "$study_process" 2>/dev/null || break
    done
fi
echo "slurm.sh: the study ended with exit code $code"
trap '' TERM # Ray's end and the queue come first
stop_ray
if [ "$code" = "$TRY_AGAIN" ]; then
    echo "slurm.sh: time is up; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
