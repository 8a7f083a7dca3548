#!/usr/bin/env bash
# Starts a server of its own, walks through what it does, stops it, and checks that nothing of it is left.
set -euo pipefail
source "$(dirname "$0")/common.sh"

data=$(mktemp -d)
port=$(free_port)
base="http://127.0.0.1:$port"
server=

# shellcheck disable=SC2317  # called by the trap
finish() {
  local code=$?
  trap - EXIT
  if [[ -n $server ]]; then
    stop_process "$server" cloud-sandbox 30 || code=1
  fi
  if ((code != 0)); then
    echo "demo: FAILED; the server said:" >&2
    tail -n 20 "$data/server.log" >&2 || true
  fi
  rm -rf "$data"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Prints a title.
title() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# Calls `METHOD PATH [BODY]` with the token, prints call and answer, and keeps the answer in $answer.
call() {
  local method=$1 path=$2 body=${3-}
  local arguments=(--silent --show-error --fail-with-body --max-time 60 -X "$method" "$base$path")
  [[ -z ${token-} ]] || arguments+=(-H "Authorization: Bearer $token")
  [[ -z $body ]] || arguments+=(-H "Content-Type: application/json" -d "$body")
  printf '$ curl -X %s "%s"' "$method" "http://localhost:$port$path"
  [[ -z $body ]] || printf " -d '%s'" "$body"
  printf '\n'
  answer=$(curl "${arguments[@]}") || { echo "$answer"; echo "demo: the call failed" >&2; return 1; }
  jq --compact-output '(.access_token? // empty) |= .[0:16] + "…"' <<<"$answer" 2>/dev/null || echo "$answer"
}

# Fails unless the answer's field $1 is $2.
expect() {
  local value
  value=$(jq --raw-output "$1" <<<"$answer")
  [[ $value == "$2" ]] || { echo "demo: $1 is '$value', not '$2'" >&2; return 1; }
}

# Every process of the server $1, sandboxes included.
processes() { cat /proc/"$1"/task/*/children 2>/dev/null; }

# Folders of the control groups that the processes $@ are in, and that are a sandbox's.
groups() {
  local pid
  for pid; do
    awk -F: '$3 ~ /cloud-sandbox-/ {print "/sys/fs/cgroup" ($2 == "" ? "" : "/" $2) $3}' "/proc/$pid/cgroup"
  done
}

title "a server on a free port, its data in a folder of its own"
echo "\$ cloud-sandbox serve --listen 127.0.0.1:$port --data-dir $data"
"$bin/cloud-sandbox" serve --listen "127.0.0.1:$port" --grpc-listen "127.0.0.1:$(free_port)" --data-dir "$data/state" \
  >"$data/server.log" 2>&1 </dev/null &
server=$!
wait_for 20 "$base/readyz"

title "is it well?"
call GET /health
expect .status ok

title "a token (handed out freely, since it listens on loopback only)"
call POST /api/v1/auth/token '{"user_id": "test", "role": "user"}'
token=$(jq --raw-output .access_token <<<"$answer")

title "a sandbox from the warm pool"
call POST /api/v1/sandbox/acquire
sandbox=$(jq --raw-output .sandbox_id <<<"$answer")

title "Python runs in it"
call POST /api/v1/execute "{\"sandbox_id\": \"$sandbox\", \"code\": \"print(\\\"Hello!\\\", 6 * 7)\", \"language\": \"python\"}"
expect .stdout $'Hello! 42'
expect .exit_code 0

title "a file is written, and read back"
call PUT /api/v1/files "{\"sandbox_id\": \"$sandbox\", \"path\": \"/workspace/note.txt\", \"content\": \"written over REST\"}"
call GET "/api/v1/files?sandbox_id=$sandbox&path=/workspace/note.txt"
expect .content "written over REST"

title "a command sees it, and sees nothing of this machine"
call POST /api/v1/execute "{\"sandbox_id\": \"$sandbox\", \"command\": \"cat note.txt; echo; id -un; ls /home | wc -l; ls -d /proc/[0-9]* | wc -l\"}"
expect .exit_code 0

title "a program that fails says how"
call POST /api/v1/execute "{\"sandbox_id\": \"$sandbox\", \"code\": \"raise SystemExit(3)\"}"
expect .exit_code 3

title "one that never ends is ended"
call POST /api/v1/execute "{\"sandbox_id\": \"$sandbox\", \"code\": \"while True: pass\", \"timeout_ms\": 500}"
expect .timed_out true

title "the sandbox is destroyed, with all that was in it"
call POST /api/v1/sandbox/release "{\"sandbox_id\": \"$sandbox\"}"
expect .released true

title "the server stops, and nothing is left"
running=$(processes "$server")
[[ -n $running ]] || { echo "demo: the warm pool has no processes" >&2; exit 1; }
# shellcheck disable=SC2086  # a list of numbers
grouped=$(groups $running)
stopped=$server
stop_process "$server" cloud-sandbox 30
server=
wait "$stopped" || { echo "demo: the server ended with $?" >&2; exit 1; }
for pid in $running; do
  [[ ! -e /proc/$pid ]] || { echo "demo: process $pid is left" >&2; exit 1; }
done
for group in $grouped; do
  [[ ! -e $group ]] || { echo "demo: control group $group is left" >&2; exit 1; }
done
! grep --quiet "$data" /proc/self/mounts || { echo "demo: mounts are left" >&2; exit 1; }
echo "no process, no control group, no mount"

title "the same without a server"
echo "\$ echo 'print(6*7)' | cloud-sandbox run --language python -"
printed=$(echo 'print(6*7)' | "$bin/cloud-sandbox" run --language python -)
echo "$printed"
[[ $printed == 42 ]]

title "all steps passed"
