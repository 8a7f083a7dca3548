#!/bin/bash
# What is checked inside the virtual machine of sandboxes that are containers of a Docker Engine.
set -euo pipefail
export PATH=/usr/bin HOME=/tmp
source /guest.sh

readonly SOCKET=/tmp/docker.sock IMAGE=cloud-sandbox-test:bare
readonly MEMORY=$((64 * 1024 * 1024)) PIDS=24
# the group that the daemon has for all containers
readonly CONTAINERS=$ROOT/docker

# Asks the daemon: METHOD PATH [CURL'S ARGUMENT...]
engine() {
  curl --silent --show-error --fail --max-time 60 --unix-socket "$SOCKET" --request "$1" "${@:3}" "http://docker$2"
}

# Calls METHOD PATH [BODY] as the user of the checks, and prints the answer, also one that is an error.
call() {
  local token=/tmp/token
  curl --silent --show-error --max-time 60 --request "$1" --header "Authorization: Bearer $(<"${TOKEN:-$token}")" \
    --header "Content-Type: application/json" --data "${3-{\}}" "$URL$2"
}

engine_starts() {
  printf 'version = 2\nroot = "/tmp/containerd"\nstate = "/tmp/containerd.state"\n' >/tmp/containerd.toml
  printf 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "/tmp/containerd.sock"\n' >>/tmp/containerd.toml
  containerd --config /tmp/containerd.toml >/tmp/containerd.log 2>&1 &
  eventually test -S /tmp/containerd.sock
  # without the modules of a kernel there are no layers in an overlay
  cat >/tmp/daemon.json <<END
    {"hosts": ["unix://$SOCKET"], "containerd": "/tmp/containerd.sock", "data-root": "/tmp/docker",
     "storage-driver": "vfs", "bridge": "none", "iptables": false, "ip-forward": false, "ip-masq": false,
     "exec-opts": ["native.cgroupdriver=cgroupfs"], "runtimes": {"crun": {"path": "/usr/bin/crun"}}}
END
  dockerd --config-file /tmp/daemon.json >/tmp/dockerd.log 2>&1 &
  trap 'tail -n 20 /tmp/containerd.log /tmp/dockerd.log' EXIT
  eventually engine GET /_ping
  engine POST /images/load --header "Content-Type: application/x-tar" --data-binary @/image.tar
  trap - EXIT
}

server_starts() {
  local runtime
  DOCKER_HOST=unix://$SOCKET SANDBOX_RUNTIMES=docker SANDBOX_IMAGE=$IMAGE DEFAULT_TEMPLATE=docker POOL_MIN_SIZE=0 \
    cloud-sandbox serve --listen "${URL#http://}" --data-dir /tmp/data >/tmp/server.log 2>&1 &
  echo $! >/tmp/server.pid
  trap 'tail -n 20 /tmp/server.log' EXIT
  eventually wget -qO /dev/null "$URL/readyz"
  cloud-sandbox token --user root --role admin --data-dir /tmp/data >/tmp/admin
  cloud-sandbox token --user test --role user --data-dir /tmp/data >/tmp/token
  for runtime in runc crun; do
    TOKEN=/tmp/admin call POST /api/v1/templates "{\"name\": \"$runtime\", \"runtimes\": [\"docker+$runtime\"],
      \"source\": {\"docker_image\": {\"image\": \"$IMAGE\", \"pull\": \"never\"}}}"
    eventually template_is_ready "$runtime"
  done
  trap - EXIT
}

template_is_ready() { [[ $(call GET "/api/v1/templates/$1" | field state) == ready ]]; }

# Runs the arguments in the sandbox, and prints the answer.
run() {
  local argv
  argv=$(printf '"%s", ' "$@")
  call POST /api/v1/execute "{\"sandbox_id\": \"$sandbox\", \"argv\": [${argv%, }]}"
}

# Leaves in $session, $sandbox and $group the session of the runtime $1, which has been begun.
know() { source "/tmp/$1.session"; }

session_begins() {
  local answer container
  answer=$(call POST /api/v1/sessions "{\"template\": \"$1\", \"limits\": {\"memory_bytes\": $MEMORY, \"pids\": $PIDS}}")
  echo "$answer"
  session=$(field session_id <<<"$answer") sandbox=$(field sandbox_id <<<"$answer")
  container=$(engine GET "/containers/cloud-sandbox-$sandbox/json" | field Id)
  group=$CONTAINERS/$container
  declare -p session sandbox group | sed 's/^declare --/declare -g/' >"/tmp/$1.session"
  [[ $(<"$group/memory.max") == "$MEMORY" ]] || fail "memory.max is $(<"$group/memory.max")"
  [[ $(<"$group/pids.max") == "$PIDS" ]] || fail "pids.max is $(<"$group/pids.max")"
  [[ $(<"$group/cpu.max") != max* ]] || fail "cpu.max is $(<"$group/cpu.max")"
}

runs_programs_and_tells_usage() {
  local answer name
  know "$1"
  answer=$(run /busybox cat /proc/self/cgroup)
  [[ $answer == *'0::/\n'* ]] || fail "$answer"
  answer=$(call GET "/api/v1/sandbox/$sandbox")
  for name in memory_bytes pids cpu_time_ms; do
    grep -E "\"$name\": *\"?[1-9]" <<<"$answer" || fail "no $name: $answer"
  done
}

memory_hog_is_killed() {
  local answer
  know "$1"
  answer=$(run /busybox tail /dev/zero)
  [[ $answer == *'"oom_killed":true'* && $answer == *'"exit_code":137'* ]] || fail "$answer"
  runs_programs_and_tells_usage "$1"
}

processes_are_limited() {
  local answer
  know "$1"
  # shellcheck disable=SC2016  # it is the sandbox's shell that expands it
  answer=$(run /busybox sh -c 'for i in $(/busybox seq 40); do /busybox sleep 100 & done; wait')
  [[ $answer == *'"pids_limit":true'* ]] || fail "$answer"
  runs_programs_and_tells_usage "$1"
}

session_pauses_and_resumes() {
  know "$1"
  [[ $(call POST "/api/v1/sessions/$session/pause" | field state) == paused ]] || fail "not paused"
  grep "frozen 1" "$group/cgroup.events"
  [[ $(call POST "/api/v1/sessions/$session/resume" | field state) == running ]] || fail "not running"
  grep "frozen 0" "$group/cgroup.events"
  runs_programs_and_tells_usage "$1"
}

paused_one_is_killed_from_outside() {
  local answer
  know "$1"
  engine POST "/containers/cloud-sandbox-$sandbox/pause"
  eventually is_paused
  engine DELETE "/containers/cloud-sandbox-$sandbox?force=true"
  eventually is_gone || fail "$(run /busybox true)"
  [[ ! -e $group ]] || fail "left: $group"
  call DELETE "/api/v1/sessions/$session"
}

is_paused() { [[ $(call GET "/api/v1/sandbox/$sandbox" | field state) == paused ]]; }
is_gone() { [[ $(run /busybox true) == *SANDBOX_GONE*"killed from outside"* ]]; }

server_stops_and_leaves_nothing() {
  local pid
  pid=$(</tmp/server.pid)
  call POST /api/v1/sandbox/acquire '{"template": "crun"}'
  kill -TERM "$pid"
  eventually has_ended "$pid"
  [[ $(engine GET "/containers/json?all=true") == "[]"* ]] || fail "$(engine GET "/containers/json?all=true")"
  [[ -z $(groups) ]] || fail "left: $(groups)"
}

has_ended() { [[ ! -e /proc/$1 ]]; }
groups() { find "$CONTAINERS" -mindepth 1 -type d; }

everything() {
  local runtime
  check "containers: engine starts" engine_starts
  check "containers: server starts and has templates" server_starts
  for runtime in runc crun; do
    check "$runtime: limits are set" session_begins "$runtime"
    check "$runtime: programs run, and usage is told" runs_programs_and_tells_usage "$runtime"
    check "$runtime: memory limit" memory_hog_is_killed "$runtime"
    check "$runtime: process limit" processes_are_limited "$runtime"
    check "$runtime: session is frozen and goes on" session_pauses_and_resumes "$runtime"
    check "$runtime: killed from outside while it is paused" paused_one_is_killed_from_outside "$runtime"
  done
  check "containers: server stops and leaves nothing" server_stops_and_leaves_nothing
}

run_checks "$@"
