#!/usr/bin/env bash
# Runs what is tested of the agent inside containers of the engine that tests/setup/docker.py starts:
# agent.sh [-E FILTER] RUNTIME...
#
# Without a filter, which is one of nextest's, it is the part that says most about another kernel in a few seconds; `all()`
# is all. What `make test` has built is used as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

filter='
    test(/^(walls|start|users)::/)
    | test(/^standstill::(a_standstill|all|everything|sockets|the_first|what_was)/)
    | test(/^control::(bytes_go|what_was_printed)/)
    | test(/^ports::a_connection/)
    | test(/^terminals::a_/)
    | test(/^file_archives::a_/)
    | test(/^(runs::a_process|sessions::a_signal|files::text|trees::a_tree|file_watch::what_programs)/)'
if [[ ${1-} == -E ]]; then
    filter=$2
    shift 2
fi
if (($# == 0)); then
    echo "usage: agent.sh [-E FILTER] RUNTIME..." >&2
    exit 2
fi

if [[ ,${CLOUD_SANDBOX_TEST_SKIP-}, == *,docker,* ]]; then
    echo "left out: tests/containers"
    exit
fi

# The static one, which runs in any image; the build of the server's packages leaves it there.
target=${CARGO_TARGET_DIR:-target}
cargo build --locked --quiet --package cloud-sandbox-embedded
CLOUD_SANDBOX_TEST_AGENT=$(realpath "$target/guest/$(rustc -vV | sed -n 's/^host: //p')/guest/cloud-sandbox-agent")
export CLOUD_SANDBOX_TEST_AGENT
for runtime in "$@"; do
    echo "the agent in containers by $runtime"
    # of the whole workspace, as it was built: for one package alone its dependencies would have other features
    CLOUD_SANDBOX_TEST_AGENT_IN=docker+$runtime cargo nextest run --locked --workspace \
        --test-threads "$((2 * $(nproc)))" -E "binary_id(cloud-sandbox-agent::agent) & ($filter)"
done
