#!/bin/bash
# What is checked of the native runtime inside the virtual machine.
set -euo pipefail
export PATH=/usr/bin HOME=/tmp
source /guest.sh

readonly MEMORY=$((64 * 1024 * 1024)) PIDS=24

# The groups of servers and sandboxes below $1.
groups() { find "$1" -mindepth 1 -type d -name 'cloud-sandbox-*'; }
no_groups() { [[ -z $(groups "$ROOT") ]]; }

# Whether the doctor finds every limit, in a hierarchy below $1.
doctor_is_content() {
  local said
  said=$(cloud-sandbox doctor)
  echo "$said"
  [[ $said == *"v2 at $1/cloud-sandbox-"* ]] || fail "not in $1"
  ! grep -E '^degraded +(memory limit|process limit|CPU limit|CPU accounting|freezer|cgroups)' <<<"$said"
}

doctor_says_what_is_missing() {
  local said row
  said=$(cloud-sandbox doctor)
  echo "$said"
  for row in cgroups "memory limit" "process limit" "CPU limit" freezer; do
    grep -E "^degraded +$row" <<<"$said" || fail "no row: $row"
  done
}

runs_a_program() {
  local said
  # shellcheck disable=SC2016  # it is the sandbox's shell that expands it
  said=$(exits 7 cloud-sandbox run --language bash - <<<'echo "hello from $((6 * 7))"; exit 7') || fail "$said"
  [[ $said == "hello from 42" ]] || fail "$said"
}

# A program that takes more memory than it may, in a shell that goes on.
memory_hog_is_killed() {
  local said
  export SANDBOX_MEMORY_BYTES=$MEMORY
  said=$(exits 137 cloud-sandbox run --language bash - 2>&1 <<<'tail /dev/zero') || fail "$said"
  echo "$said"
  [[ $said == *"memory limit"* ]] || fail "nothing about memory"
}

# A program that forks without end; meanwhile its group is looked at from outside.
processes_are_limited() {
  local runner group log=/tmp/bomb.$UID.log
  export SANDBOX_PIDS=$PIDS SANDBOX_CPU_MILLIS=500 SANDBOX_MEMORY_BYTES=$MEMORY
  # more than it takes to look at it: this machine is slow
  cloud-sandbox run --language bash --timeout 60 - <<<'bomb() { bomb | bomb & }; bomb; while :; do :; done' 2>"$log" &
  runner=$!
  eventually hit_process_limit "$1"
  group=$(dirname "$1"/cloud-sandbox-*/*/pids.max)
  (($(<"$group/pids.current") <= PIDS)) || fail "more processes than $PIDS"
  [[ $(<"$group/pids.max") == "$PIDS" ]] || fail "pids.max is $(<"$group/pids.max")"
  [[ $(<"$group/memory.max") == "$MEMORY" ]] || fail "memory.max is $(<"$group/memory.max")"
  [[ $(<"$group/cpu.max") == "50000 100000" ]] || fail "cpu.max is $(<"$group/cpu.max")"
  eventually value_above_0 "$group/cpu.stat" nr_throttled
  kill -TERM "$runner"
  exits 143 wait "$runner" || fail "$(<"$log")"
  [[ ! -e $group ]] || fail "$group is left"
}

timeout_is_told() {
  local said
  said=$(exits 137 cloud-sandbox run --language bash --timeout 1 - 2>&1 <<<'sleep 100') || fail "$said"
  [[ $said == *"ended after 1 s"* ]] || fail "$said"
}

hit_process_limit() { value_above_0 "$1"/cloud-sandbox-*/*/pids.events max; }
value_above_0() { awk -v key="$2" '$1 == key && $2 > 0 {found = 1} END {exit !found}' "$1" 2>/dev/null; }

# Starts a server, and leaves its process id in $server.
start_server() {
  POOL_MIN_SIZE=1 cloud-sandbox serve --listen "${URL#http://}" --data-dir /tmp/data >>/tmp/server.log 2>&1 &
  server=$!
  # after a failed check, or the next one would meet it
  trap 'kill -KILL "$server" 2>/dev/null || true; tail -n 20 /tmp/server.log' EXIT
  eventually wget -qO /dev/null "$URL/readyz"
}

# Starts a server and a session, whose ids are left in $session, $sandbox, and its group in $group.
start_session() {
  local answer
  start_server
  token=$(post /api/v1/auth/token '{"user_id": "test", "role": "user"}' | field access_token)
  answer=$(post /api/v1/sessions)
  echo "$answer"
  session=$(field session_id <<<"$answer")
  sandbox=$(field sandbox_id <<<"$answer")
  group=$(echo "$ROOT"/cloud-sandbox-*/"$sandbox")
  [[ -d $group ]] || fail "no group: $group"
}

session_pauses_and_resumes() {
  start_session
  [[ $(post "/api/v1/sessions/$session/pause" | field state) == paused ]] || fail "not paused"
  grep "frozen 1" "$group/cgroup.events"
  [[ $(post "/api/v1/sessions/$session/resume" | field state) == running ]] || fail "not running"
  grep "frozen 0" "$group/cgroup.events"
  [[ $(post /api/v1/execute "{\"sandbox_id\": \"$sandbox\", \"command\": \"echo well\"}" | field stdout) == "well\\n" ]]
  stop_server
}

stop_server() {
  kill -TERM "$server"
  exits 0 wait "$server"
  no_groups || fail "left: $(groups "$ROOT")"
}

server_with_a_paused_session_stops() {
  start_session
  post "/api/v1/sessions/$session/pause"
  stop_server
}

killed_server_is_cleaned_up_after() {
  start_session
  post "/api/v1/sessions/$session/pause"
  kill -KILL "$server"
  exits 137 wait "$server"
  [[ -d $group ]] || fail "nothing is left to be cleaned up"
  start_server
  [[ ! -e $group && ! -e ${group%/*} ]] || fail "left: $group"
  stop_server
}

# Makes the group $1 the user's as systemd's Delegate= does (cgroup-v2.rst, "Model of Delegation").
delegate() {
  echo "+cpu +memory +pids" >"$ROOT/cgroup.subtree_control"
  mkdir "$1"
  chown user:user "$1" "$1"/cgroup.{procs,subtree_control,threads}
}

# Runs the function $2 as an ordinary user in the group $1.
as_user_in() {
  echo "$BASHPID" >"$1/cgroup.procs"
  exec setpriv --reuid 1000 --regid 1000 --clear-groups "$0" "${@:2}"
}

# Runs the function $1, which is told its group, as an ordinary user in a group of its own.
as_user_with_a_group() {
  delegate "$ROOT/$1"
  as_user_in "$ROOT/$1" "$1" "$ROOT/$1"
}

# Several runs from one shell: the first of them moves the shell out of the way too.
limits_hold() {
  doctor_is_content "$1"
  runs_a_program
  memory_hog_is_killed
  processes_are_limited "$1"
  timeout_is_told
  [[ -z $(groups "$1") ]] || fail "left: $(groups "$1")"
}

# What is in the group when the server wants to move it may end at any moment, or start.
group_is_busy() {
  local churn
  (while :; do /usr/bin/true; done) &
  churn=$!
  doctor_is_content "$1"
  kill "$churn"
}

killed_run_is_cleaned_up_after() {
  cloud-sandbox run --language bash - <<<'sleep 100' &
  eventually sandbox_lives "$1"
  kill -KILL $!
  exits 137 wait $!
  [[ -n $(groups "$1") ]] || fail "nothing is left to be cleaned up"
  runs_a_program
  [[ -z $(groups "$1") ]] || fail "left: $(groups "$1")"
}

sandbox_lives() { [[ -n $(cat "$1"/cloud-sandbox-*/*/cgroup.procs 2>/dev/null) ]]; }

not_delegated() {
  doctor_says_what_is_missing
  runs_a_program
}

# Runs the function $1 as root in a container: its own group is the root of the hierarchy that it sees.
in_a_container() {
  mkdir "$ROOT/container"
  echo "$BASHPID" >"$ROOT/container/cgroup.procs"
  exec unshare --cgroup --mount "$0" with_own_hierarchy "$@"
}

with_own_hierarchy() {
  umount "$ROOT"
  mount -t cgroup2 cgroup2 "$ROOT"
  "$@"
}

everything() {
  check "root: doctor finds every limit" doctor_is_content "$ROOT"
  check "root: output and exit code" runs_a_program
  check "root: memory limit" memory_hog_is_killed
  check "root: process and CPU limits" processes_are_limited "$ROOT"
  check "root: timeout" timeout_is_told
  check "root: sandboxes leave no groups" no_groups
  check "serve: session is frozen and goes on" session_pauses_and_resumes
  check "serve: SIGTERM with a frozen session leaves nothing" server_with_a_paused_session_stops
  check "serve: kill -9 with a frozen session is cleaned up after" killed_server_is_cleaned_up_after
  check "container: limits hold" in_a_container limits_hold "$ROOT"
  check "user: limits hold in a delegated group" as_user_with_a_group limits_hold
  check "user: delegated group may be busy" as_user_with_a_group group_is_busy
  check "user: kill -9 is cleaned up after" as_user_with_a_group killed_run_is_cleaned_up_after
  check "user: works without a delegated group" as_user_in "$ROOT" not_delegated
}

run_checks "$@"
