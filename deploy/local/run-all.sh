#!/usr/bin/env bash
# Runs each role as a process of its own, as a fleet does, with a Redis of their own: logs and process numbers lie in
# .cache/run-all, `make stop` ends all of them. PORT is the gateway's port (8080).
set -euo pipefail
source "$(dirname "$0")/common.sh"

if compgen -G "$state/*.pid" >/dev/null; then
  "$(dirname "$0")/stop.sh"
fi
rm -rf "$state"
mkdir -p "$state/data"

port=${PORT:-8080}
redis_port=$(free_port)
export REDIS_URL="redis://127.0.0.1:$redis_port"
# one folder, and so one secret, for all of them
export DATA_DIR="$state/data"

# Starts the command $2… in the background under the name $1.
start() {
  local name=$1
  shift
  "$@" >"$state/$name.log" 2>&1 </dev/null &
  echo "$! $(basename "$1")" >"$state/$name.pid"
  echo "$name" >>"$state/order"
}

fail() {
  echo "run-all: $1; the logs are in $state" >&2
  tail -n 5 "$state"/*.log >&2
  "$root/deploy/local/stop.sh" >&2
  exit 1
}

start redis redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$state"
wait_for_port 10 "$redis_port" || fail "redis does not listen"
start scheduler "$bin/scheduler"
start session-manager "$bin/session-manager"
start exec "$bin/cloud-sandbox" exec
start node "$bin/cloud-sandbox" node
start gateway "$bin/gateway" --listen "127.0.0.1:$port"

wait_for 30 "http://127.0.0.1:$port/readyz" || fail "the gateway is not ready after 30 s"
while read -r name; do
  read -r pid program <"$state/$name.pid"
  is_running "$pid" "$program" || fail "$name has ended"
done <"$state/order"

echo "run-all: everything runs: http://localhost:$port (logs in .cache/run-all, stop with 'make stop')"
