#!/usr/bin/env bash
# Stops what run-all.sh started, the last first.
set -euo pipefail
source "$(dirname "$0")/common.sh"

[[ -r $state/order ]] || exit 0
failed=0
while read -r name; do
  [[ -r $state/$name.pid ]] || continue
  read -r pid program <"$state/$name.pid"
  stop_process "$pid" "$program" 30 || failed=1
  rm -f "$state/$name.pid"
  echo "stopped $name"
done < <(tac "$state/order")
rm -f "$state/order"
exit "$failed"
