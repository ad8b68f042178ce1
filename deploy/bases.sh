#!/usr/bin/env bash
# Makes the base images of deploy/Dockerfile from Debian packages, where no image registry can be
# reached. Needs root, mmdebstrap, docker, and Debian's packages by way of apt.
#
#   deploy/bases.sh run      sbk-base-run: the C library, a shell, the core utilities
#   deploy/bases.sh build    sbk-base-build: a C linker, and the Rust of this machine, for Debian's own
#                            is older than what sbk needs
#
# Each is left alone if it is there; `docker rmi NAME` first to have it made anew.
set -euo pipefail

suite=bookworm
# mmdebstrap's copy of what a slim Debian image leaves out.
slim=(
    --dpkgopt='path-exclude=/usr/share/man/*'
    --dpkgopt='path-exclude=/usr/share/info/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-include=/usr/share/doc/*/copyright'
)

is_there() { docker image inspect "$1" >/dev/null 2>&1; }

run() {
    # Packages are unpacked and not configured: nothing in them needs it, and no package manager has
    # to be in the image.
    mmdebstrap --quiet --variant=extract "${slim[@]}" \
        --include=base-files,libc6,libgcc-s1,coreutils,dash "$suite" - \
        | docker import --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' - sbk-base-run
}

build() {
    local dir
    dir=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$dir'" EXIT
    mmdebstrap --quiet --variant=essential "${slim[@]}" --include=gcc,libc6-dev,ca-certificates \
        "$suite" "$dir"
    # This machine's certificates too: its way to the crates may be through a proxy of its own.
    cp /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/ca-certificates.crt"
    mkdir "$dir/usr/local/rust"
    # Without its documentation, which is larger than the compiler.
    tar -C "$(rustc --print sysroot)" -c --exclude=./share . | tar -C "$dir/usr/local/rust" -x
    tar -C "$dir" -c . | docker import \
        --change 'ENV PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV CARGO_HOME=/usr/local/cargo' \
        --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' - sbk-base-build
}

case "${1:-}" in
    run | build) is_there "sbk-base-$1" || "$1" ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
