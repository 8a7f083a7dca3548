# Shared by the scripts beside it; sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin="$root/bin"
state="$root/.cache/run-all"

# A port of loopback that nobody listens on now.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits up to $1 seconds until the URL $2 answers 200.
wait_for() {
  local deadline=$((SECONDS + $1))
  until curl --silent --fail --output /dev/null --max-time 2 "$2"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# Waits up to $1 seconds until something listens on the port $2 of loopback.
wait_for_port() {
  local deadline=$((SECONDS + $1))
  until (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# Whether the process $1 runs and is the program $2: a number may have gone to somebody else since.
is_running() {
  [[ -r /proc/$1/cmdline ]] && tr '\0' ' ' <"/proc/$1/cmdline" | grep --quiet --fixed-strings -- "$2"
}

# Asks the process $1 (the program $2) to stop and waits for its end; after $3 seconds it is killed.
stop_process() {
  local pid=$1 program=$2 deadline=$((SECONDS + $3))
  is_running "$pid" "$program" || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  while is_running "$pid" "$program"; do
    if ((SECONDS >= deadline)); then
      echo "$program (process $pid) does not stop; killing it" >&2
      kill -KILL "$pid" 2>/dev/null || true
      return 1
    fi
    sleep 0.1
  done
}
