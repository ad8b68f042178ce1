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
step cargo test --workspace --locked --no-fail-fast
if [ "${1:-}" != quick ]; then
    # More seeds of the simulated cluster, in a build that runs them in seconds. The last seeds
    # are derived from the commit, so that every change is tried with others.
    start=$((16#$(git rev-parse --short=6 HEAD 2>/dev/null || echo 0)))
    SEEDS=0..1000 step cargo test -p sbk-engine --release --locked --test cluster everything -- --nocapture
    SEEDS=$start..$((start + 500)) step cargo test -p sbk-engine --release --locked --test cluster everything -- --nocapture
fi
