#!/usr/bin/env bash
# Runs the program BINARY in a virtual machine whose kernel has the unified cgroup hierarchy and no other: sandboxes of the
# native runtime. See machine.sh.
set -euo pipefail

# Seconds for everything inside. Two idle cores need a quarter of it.
PATIENCE=240
CHECKS=checks.sh

(($# == 1)) || { echo "usage: ${0##*/} BINARY" >&2; exit 2; }
binary=$(realpath "$1")
# shellcheck source=tests/vm/machine.sh
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"

begin_guest "$binary"
add_program setpriv "$(program setpriv)"
add_program unshare "$(program unshare)"
run_guest 1G "$PATIENCE"
