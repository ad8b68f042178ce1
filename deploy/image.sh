#!/usr/bin/env bash
# Makes the image `sbk` (or $IMAGE) with docker.
#
#   deploy/image.sh            from what `cargo build --release` makes here: seconds, if that is done
#   deploy/image.sh --source   built inside the image: minutes
#
# The bases are made from Debian packages by deploy/bases.sh, unless RUN_BASE and BUILD_BASE name
# images, as in RUN_BASE=debian:bookworm-slim BUILD_BASE=rust:1-bookworm where a registry can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-sbk}
run_base=${RUN_BASE:-sbk-base-run}
build_base=${BUILD_BASE:-sbk-base-build}
programs=(sbk-master sbk-datanode sbkctl)

before=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null || true)
[ -n "${RUN_BASE:-}" ] || deploy/bases.sh run
case "${1:-}" in
    --source)
        [ -n "${BUILD_BASE:-}" ] || deploy/bases.sh build
        # The build fetches crates over whatever network this machine has.
        docker build --network host -f deploy/Dockerfile --build-arg RUN_BASE="$run_base" \
            --build-arg BUILD_BASE="$build_base" -t "$image" .
        ;;
    '')
        cargo build --release --locked "${programs[@]/#/--bin=}"
        rm -rf target/image
        mkdir -p target/image
        for program in "${programs[@]}"; do
            strip -o "target/image/$program" "${CARGO_TARGET_DIR:-target}/release/$program"
        done
        docker build -f deploy/Dockerfile --build-arg RUN_BASE="$run_base" --target prebuilt \
            -t "$image" .
        ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
# A C library that is older than that of the machine which built shows here, and not in a restart loop.
for program in "${programs[@]}"; do
    docker run --rm --network none "$image" "$program" --version
done
# What had the name until now would stay, without one. Containers may still need it.
if [ -n "$before" ] && [ "$before" != "$(docker image inspect -f '{{.Id}}' "$image")" ]; then
    docker rmi "$before" >/dev/null 2>&1 || true
fi
