#!/usr/bin/env bash
# Runs what is tested of the agent inside containers of a Docker Engine: agent.sh DAEMON IMAGE RUNTIME [FILTER...]
#
# Without filters it is the part that says most about another kernel in less than a minute; `agent.sh … ''` is all.
set -euo pipefail

if (($# < 3)); then
    echo "usage: agent.sh DAEMON IMAGE RUNTIME [FILTER...]" >&2
    exit 2
fi
cd "$(dirname "$0")/../.."
export CLOUD_SANDBOX_TEST_DOCKER=$1 CLOUD_SANDBOX_TEST_IMAGE=$2 CLOUD_SANDBOX_TEST_AGENT_IN=docker+$3
shift 3
if (($# == 0)); then
    set -- walls:: start:: ports:: control:: terminals:: standstill:: file_archives:: users:: runs::a_process \
        sessions::a_signal files::text trees::a_tree file_watch::what_programs
fi

# The static one, which runs in any image; the build of the server's packages leaves it there.
cargo build --locked --quiet --package cloud-sandbox-embedded
target=${CARGO_TARGET_DIR:-target}
CLOUD_SANDBOX_TEST_AGENT=$(realpath "$target/guest/$(rustc -vV | sed -n 's/^host: //p')/guest/cloud-sandbox-agent")
export CLOUD_SANDBOX_TEST_AGENT
exec cargo nextest run --locked --package cloud-sandbox-agent --test agent --no-fail-fast "$@"
