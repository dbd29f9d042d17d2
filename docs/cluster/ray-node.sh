#!/usr/bin/env bash
# Start or stop this user's labtune node of Ray on this machine, and touch no other Ray.
#
#     docs/cluster/ray-node.sh start --head --port=6379 ...    the arguments of `ray start`
#     docs/cluster/ray-node.sh stop
#
# `ray stop` ends every Ray process of the user: also another cluster's, also a study that runs
# without a cluster. Here `ray start --block` stays as the parent of its processes; when it is told
# to end it takes them with it, and only them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
state="$HOME/.labtune-ray/$(hostname)" # a home folder may be shared by several machines
mkdir -p "$state"
log="$state/ray.log"

ours() { # the process id of a node that we started and that still runs
    local pid command
    pid=$(cat "$state/pid" 2>/dev/null) || return 1
    command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") 2>/dev/null || return 1
    # After a restart of the machine the number may be someone else's.
    [[ $command == *'ray start --block'* ]] && echo "$pid"
}

stop() {
    local pid
    if pid=$(ours); then
        kill -TERM "$pid"
        # Its processes are one session, and some outlive it: the port would still be taken.
        for _ in $(seq 225); do
            [ "$(ps -o pid= -s "$pid")" ] || break
            sleep 0.2
        done
        ps -o pid= -s "$pid" | xargs -r kill -KILL 2>/dev/null || true
    fi
    rm -f "$state/pid"
}

start() {
    stop
    ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    setsid nohup .venv/bin/ray start --block "$@" >"$log" 2>&1 </dev/null &
    local pid=$!
    echo "$pid" >"$state/pid"
    for _ in $(seq 600); do
        if grep -q 'Ray runtime started' "$log"; then
            echo "ray-node: started (process $pid, log $log)"
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    cat "$log" >&2
    echo "ray-node: Ray did not start on $(hostname); the lines above say why" >&2
    stop
    exit 1
}

case "${1:-}" in
start) shift && start "$@" ;;
stop) stop ;;
*) echo "usage: $0 start ARGUMENTS OF ray start | stop" >&2 && exit 2 ;;
esac
