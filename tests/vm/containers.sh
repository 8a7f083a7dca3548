#!/usr/bin/env bash
# Runs the program BINARY in a virtual machine whose kernel has the unified cgroup hierarchy and no other, beside a Docker
# Engine: sandboxes that are containers by runc and by crun, which needs that hierarchy. See machine.sh.
set -euo pipefail

# Seconds for everything inside. Two idle cores need a quarter of it.
PATIENCE=480
CHECKS=containers_checks.sh

(($# == 1)) || { echo "usage: ${0##*/} BINARY" >&2; exit 2; }
binary=$(realpath "$1")
# shellcheck source=tests/vm/machine.sh
source "$(dirname "${BASH_SOURCE[0]}")/machine.sh"

begin_guest "$binary"
for name in dockerd containerd containerd-shim-runc-v2 runc crun curl; do
  add_program "$name" "$(program "$name")"
done
# one program and nothing else
PYTHONPATH=$here/../setup PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 >"$work/guest/system/image.tar" -c \
  'import sys, images; sys.stdout.buffer.write(next(images.handmade()).read())'
run_guest 2G "$PATIENCE"
