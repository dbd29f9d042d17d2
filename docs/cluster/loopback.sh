#!/usr/bin/env bash
# Bring cluster-onprem.yaml up on this machine: two "servers" that are two ssh daemons on loopback
# addresses, each with a home folder of its own; then run a study on them.
#
#     docs/cluster/loopback.sh                                      a toy study, about a minute
#     docs/cluster/loopback.sh studies/norms.py --smoke             any study with any options
#     KEEP=1 docs/cluster/loopback.sh                               leave the folder to look at
#
# Only the addresses, the user, the port and the cluster's name in the file are replaced; what is
# mounted, set up and started is what two lab servers get. Nothing outside a temporary folder is
# written, and only processes started here are ended. Needs `make env`, openssh-server and rsync; no
# root.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python="$root/.venv/bin/python"
export PATH="$PATH:/usr/sbin"
for tool in sshd ssh ssh-keygen rsync; do
    command -v "$tool" >/dev/null || {
        echo "loopback: $tool is missing; on Debian and Ubuntu: apt-get install openssh-server rsync"
        exit 2
    }
done
test -x "$python" || { echo "loopback: no .venv here; run make env"; exit 2; }
[ $# -gt 0 ] || set -- tests/support/toy.py --set epochs=4 pause=0.5

if [ "$(id -u)" = 0 ]; then mkdir -p /run/sshd; fi # sshd of root insists on it
# Short, because sockets in it have a path limit of 107 characters.
temporary=$(mktemp -d /tmp/lt-XXXXXX)
head=127.0.0.2 worker=127.0.0.3
pids=()

cleanup() {
    local code=$?
    set +e
    local stops=() server
    for server in head worker; do # together: a worker that lost its head waits for it to come back
        HOME=$temporary/$server bash "$temporary/$server/labtune/docs/cluster/ray-node.sh" stop &
        stops+=($!)
    done 2>/dev/null
    wait "${stops[@]}"
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null
    if [ "${KEEP:-}" ]; then echo "loopback: kept $temporary"; else rm -rf "$temporary"; fi
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

free_port() { # outside the range that Ray keeps for its workers
    "$python" - <<'PYTHON'
import random
import socket

while True:
    port = random.randrange(20000, 32000)
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", port)):
            print(port)
            break
PYTHON
}
ssh_port=$(free_port) ray_port=$(free_port) dashboard_port=$(free_port) client_port=$(free_port)

# Keys and daemons of our own.
ssh-keygen -q -t ed25519 -N '' -f "$temporary/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$temporary/id"
cp "$temporary/id.pub" "$temporary/authorized_keys"
mkdir "$temporary/bin" "$temporary/launcher"
cat >"$temporary/ssh_config" <<CONFIG
Host 127.0.0.*
    Port $ssh_port
    IdentityFile $temporary/id
    LogLevel ERROR
CONFIG
# Ray calls `ssh`, and ssh reads the configuration of the user's real home folder.
printf '#!/bin/sh\nexec %s -F %s "$@"\n' "$(command -v ssh)" "$temporary/ssh_config" \
    >"$temporary/bin/ssh"
chmod +x "$temporary/bin/ssh"

make_server() { # NAME ADDRESS
    local home="$temporary/$1" site
    mkdir -p "$home/labtune" "$temporary/ray-$1"
    # What `make env` would make in minutes: an environment with our libraries and the server's own
    # copy of the code. `make env` still runs, and finds it ready.
    "$python" -m venv --without-pip "$home/labtune/.venv"
    site=$(echo "$home"/labtune/.venv/lib/python*/site-packages)
    echo "$home/labtune" >"$site/0-labtune.pth"
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/1-libraries.pth"
    sed "1s|.*|#!$home/labtune/.venv/bin/python|" .venv/bin/ray >"$home/labtune/.venv/bin/ray"
    chmod +x "$home/labtune/.venv/bin/ray"
    touch "$home/labtune/.venv/.ready"
    printf 'export PATH=%s:$PATH\n' "$temporary/bin" | tee "$home/.bash_profile" >"$home/.bashrc"
    cat >"$temporary/sshd_$1" <<CONFIG
Port $ssh_port
ListenAddress $2
HostKey $temporary/host_key
AuthorizedKeysFile $temporary/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME=$home RAY_TMPDIR=$temporary/ray-$1
CONFIG
    "$(command -v sshd)" -D -e -f "$temporary/sshd_$1" 2>"$temporary/sshd_$1.log" &
    pids+=($!)
}
make_server head "$head"
make_server worker "$worker"

# The token that every node and the driver share.
export HOME="$temporary/launcher" PATH="$temporary/bin:$PATH" RAY_TMPDIR="$temporary/launcher" TMPDIR="$temporary"
export RAY_USAGE_STATS_ENABLED=0 RAY_UP_enable_autoscaler_v2=0
(umask 077 && "$root/.venv/bin/ray" get-auth-token --generate >/dev/null 2>&1)

sed -e "s/192\.0\.2\.11/$head/; s/192\.0\.2\.12/$worker/" \
    -e "s/^cluster_name: .*/cluster_name: loopback-$$/" \
    -e "s/ssh_user: .*/ssh_user: $(id -un)/" \
    -e "s/--port=6379/--port=$ray_port --dashboard-port=$dashboard_port --ray-client-server-port=$client_port/" \
    -e "s/:6379/:$ray_port/" \
    cluster-onprem.yaml >"$temporary/cluster.yaml"

echo "loopback: ray up (head $head, worker $worker, ssh port $ssh_port, Ray port $ray_port)"
start=$SECONDS
"$root/.venv/bin/ray" up -y "$temporary/cluster.yaml" >"$temporary/up.log" 2>&1 || {
    cat "$temporary/up.log"
    exit 1
}
echo "loopback: head up after $((SECONDS - start)) s; waiting for the worker"

on_head() { ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "$head" "$@"; }
alive() {
    on_head "cd ~/labtune && RAY_AUTH_MODE=token .venv/bin/python - 2>/dev/null" <<'PYTHON'
import ray

ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print(*sorted(n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]))
PYTHON
}
for _ in $(seq 40); do
    found=$(alive || true)
    [ "$found" = "$head $worker" ] && break
    sleep 3
done
echo "loopback: nodes after $((SECONDS - start)) s: ${found:-none}"
[ "$found" = "$head $worker" ] || {
    tail -n 40 "$temporary"/ray-head/ray/session_latest/logs/monitor.* || true
    exit 1
}

echo "loopback: on the head: python $* --address auto"
code=0
on_head "cd ~/labtune && .venv/bin/python $(printf '%q ' "$@") --address auto \
    --results-dir '$temporary/results'" || code=$?
echo "loopback: the study ended with exit code $code after $((SECONDS - start)) s"
exit "$code"
