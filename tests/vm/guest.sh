# Sourced by what is checked inside the virtual machine, as its first process. A line is printed for each check (as TAP has
# them), and what a failed one has printed.

readonly ROOT=/sys/fs/cgroup
readonly URL=http://127.0.0.1:8080

count=0
# Runs `NAME COMMAND...` and says whether it went well.
check() {
  local name=$1 code=0 begun=$SECONDS
  count=$((count + 1))
  # in a process of its own, since the shell of a condition does not heed set -e
  bash "$0" "${@:2}" >/tmp/check.log 2>&1 </dev/null || code=$?
  if ((code == 0)); then
    echo "ok $count $name ($((SECONDS - begun)) s)"
  else
    echo "not ok $count $name (exit $code)"
    tail -n 50 /tmp/check.log | sed 's/^/# /'
  fi
}

fail() {
  echo "$*"
  return 1
}

# Waits up to a minute until a command succeeds.
eventually() {
  local deadline=$((SECONDS + 60))
  until "$@"; do
    ((SECONDS < deadline)) || fail "still not: $*"
    sleep 0.1
  done
}

# Expects the exit code $1 of the rest.
exits() {
  local wanted=$1 code=0
  shift
  "$@" || code=$?
  ((code == wanted)) || fail "exit code $code, not $wanted: $*"
}

# Calls POST $1 with the body $2, and prints the answer.
post() {
  wget -qO- --header "Content-Type: application/json" ${token:+--header "Authorization: Bearer $token"} \
    --post-data "${2-{\}}" "$URL$1"
}

# The text that the JSON on standard input has as $1.
field() { grep -o "\"$1\": *\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4; }

# Runs everything, or in a process of a check what that is told.
run_checks() {
  if (($$ == 1)); then
    # without its first process the kernel panics, and that takes the last lines along
    trap 'poweroff -f' EXIT
    ip link set lo up
    everything
    echo "1..$count"
  else
    "$@"
  fi
}
