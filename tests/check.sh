#!/usr/bin/env bash
# Every check of the project: formatting, lints, tests, documentation. What CI runs is this.
#
#   tests/check.sh            everything
#   tests/check.sh quick      without the release builds
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS='-D warnings' step cargo doc --workspace --no-deps --locked --quiet
step cargo test --workspace --exclude sbk-cli --exclude sbk-process-tests --locked --no-fail-fast
# Each of these starts a cluster of its own. As many at once as there are cores would stand in each other's way.
step cargo test -p sbk-cli -p sbk-process-tests --locked --no-fail-fast -- --test-threads 2
if [ "${1:-}" != quick ]; then
    # More seeds of the simulated cluster, in a build that runs them in seconds. The last seeds
    # are derived from the commit, so that every change is tried with others.
    start=$((16#$(git rev-parse --short=6 HEAD 2>/dev/null || echo 0)))
    sim() { step cargo run -p sbk-tests --release --locked --bin sim -- --threads "$(nproc)" "$@"; }
    sim --seeds 0..2000 --regressions --marks
    sim --seeds $start..$((start + 500))
    # Every state of small worlds, as many of them as are documented.
    step cargo run -p sbk-tests --release --locked --bin explore -- --threads "$(nproc)" \
        --check docs/testing.md
    # Each known bug that is put back must be noticed, where docs/testing.md says.
    step cargo clippy -p sbk-tests --features bugs --all-targets --locked -- -D warnings
    step cargo test -p sbk-engine --features bugs --locked -q --test replica -- tables
    step cargo run -p sbk-tests --release --locked --features bugs --bin bites -- \
        --threads "$(nproc)"
    # And the store, crashed at every I/O of other work.
    SEEDS=$start..$((start + 20)) step cargo test -p sbk-store --release --locked --test store crash
    SEEDS=$start..$((start + 20)) step cargo test -p sbk-device --release --locked --test device crash

    # Every NBD client through every command; file systems under fsx through failovers, FAILOVERS of
    # them. Then a filesystem and a database through the loss of primaries and masters. It mounts, so it needs
    # root and the kernel's help.
    step cargo build --release --locked --bin sbkctl
    if [ "$(id -u)" = 0 ] && [ -c /dev/fuse ] && [ -e /dev/loop-control ]; then
        step tests/clients.sh
        step tests/real-data.sh
    else
        step tests/clients.sh info commands copies images fio
        printf '\n== tests/real-data.sh and tests/clients.sh files SKIPPED: they need root, /dev/fuse and loop devices\n'
    fi

    # Failovers of a cluster in containers, once each; more of it with RUNS.
    if docker info >/dev/null 2>&1; then
        step deploy/image.sh
        AFTER=${AFTER:-3} step deploy/compose/drill.sh all
    else
        for _ in 1 2 3; do
            printf '\n== deploy/compose/drill.sh SKIPPED: NO DOCKER ENGINE ANSWERS, no failover was tried in containers\n'
        done
    fi
fi
