#!/usr/bin/env bash
# Installs what this repository's commands need and the machine lacks; prints nothing when nothing is missing.
#
#   scripts/install.sh stack    what the private stack needs
#   scripts/install.sh build    the same and a C compiler: the demo, the benches
#   scripts/install.sh test     the same and cargo-nextest
#   scripts/install.sh check    a C compiler, shellcheck, git and cargo-deny
#   scripts/install.sh deploy   what checks the files of deploy/: promtool, squid, docker-compose, systemd-analyze, npm
#   scripts/install.sh containers  the same as stack, and what builds and runs images without a registry
#
# System packages come by apt-get (as root, or with sudo), Rust tools by `cargo install --locked` into cargo's own bin
# directory. Services that such packages would start are not started, now or at the next boot.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"

NEXTEST_VERSION=0.9.143
DENY_VERSION=0.20.2
POLICY=/usr/sbin/policy-rc.d
SAVED_POLICY=$POLICY.voiceai-saved

missing=()
# need PACKAGE COMMAND...: the package is missing unless the command succeeds.
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
has() { command -v "$1"; }
# A virtual environment needs more than the interpreter on Debian.
has_venv() { python3 -c 'import ensurepip, venv' || /usr/bin/python3 -c 'import ensurepip, venv'; }
# The OTLP receiver of the tests embeds the interpreter.
has_python_library() { python3 -c 'import ctypes, sys; ctypes.CDLL("libpython3.%d.so.1.0" % sys.version_info.minor)'; }
has_c_library() { echo 'int main(void) { return 0; }' | cc -x c -o /dev/null -; }

# Where an ordinary user's search path does not lead.
has_squid() { PATH=$PATH:/usr/sbin command -v squid; }
has_kamailio() { PATH=$PATH:/usr/sbin command -v kamailio; }
has_kamailio_redis() { compgen -G '/usr/lib/*/kamailio/modules/db_redis.so'; }
has_runc() { PATH=$PATH:/usr/sbin command -v runc; }
has_debootstrap() { PATH=$PATH:/usr/sbin command -v debootstrap; }

need_stack() {
  need redis-server has redis-server
  need redis-tools has redis-cli
  need postgresql postgres_bin
  need postgresql-client has pg_dump
  need postgresql-client has psql
  need curl has curl
  need jq has jq
  need python3-venv has_venv
  need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
  need util-linux has setpriv
  need util-linux has flock
  need procps has ps
}
need_compiler() {
  need gcc has cc
  need libc6-dev has_c_library
  need make has make
  need git has git
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "error: installing ${missing[*]} needs root, and there is no sudo; install them by hand and run this again"
    exit 1
  fi
}

# Debian's packages start their services on installation, on the default ports. A policy that forbids it stands in place
# while we install; whatever stood there before is put back on every way out.
forbid_services() {
  local policy
  restore_policy
  if [[ -e $POLICY ]]; then as_root mv "$POLICY" "$SAVED_POLICY"; fi
  trap restore_policy EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  policy=$(mktemp)
  printf '%s\n' '#!/bin/sh' '# voiceai: no service starts while its package is installed' 'exit 101' >"$policy"
  as_root install -m 755 "$policy" "$POLICY"
  rm -f "$policy"
}
restore_policy() {
  if [[ -e $POLICY ]] && grep -q '^# voiceai: ' "$POLICY"; then as_root rm -f "$POLICY"; fi
  # Also what an installation that was killed has left.
  if [[ -e $SAVED_POLICY ]]; then as_root mv "$SAVED_POLICY" "$POLICY"; fi
}

install_packages() {
  local package
  local -a wanted=()
  # The same package may be missed twice.
  for package in "${missing[@]}"; do
    [[ " ${wanted[*]} " == *" $package "* ]] || wanted+=("$package")
  done
  ((${#wanted[@]})) || return 0
  if ! command -v apt-get >/dev/null; then
    say "error: ${wanted[*]} (Debian's names) are missing and there is no apt-get here; install them by hand"
    exit 1
  fi
  say "installing by apt-get: ${wanted[*]}"
  forbid_services
  # A mirror that cannot be reached need not matter: the packages may be cached.
  as_root apt-get -o DPkg::Lock::Timeout=300 update -qq >&2 || say "note: apt-get update failed; trying with the lists at hand"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${wanted[@]}" >&2 || {
    say "error: apt-get could not install ${wanted[*]}; its message stands above"
    exit 1
  }
  restore_policy
  trap - EXIT
  # Nor at the next boot: only the programs are wanted here. Services of packages that were there before are left alone.
  for package in "${wanted[@]}"; do
    if [[ $package == redis-server || $package == postgresql || $package == squid || $package == exim4-daemon-light || $package == prometheus || $package == kamailio ]] && command -v systemctl >/dev/null; then
      as_root systemctl disable --quiet "${package%-daemon-light}" >&2 2>/dev/null || true
    fi
  done
}

# Functions came with Redis 7; Ubuntu 22.04 ships 6.
check_redis_version() {
  local version
  version=$(redis-server --version | sed -n 's/.*v=\([0-9]*\)\..*/\1/p')
  if ((${version:-0} < 7)); then
    say "error: redis-server is version ${version:-unknown}, 7.0 or newer is needed (Debian 12 and Ubuntu 24.04 have it)"
    exit 1
  fi
}

need_cargo() {
  command -v cargo >/dev/null || {
    say "error: cargo was not found; install a Rust toolchain (rust-version in Cargo.toml names the oldest that works)"
    exit 1
  }
}
# cargo_tool NAME VERSION [CARGO-ARGUMENT...]
cargo_tool() {
  local name=$1 version=$2
  shift 2
  if command -v "$name" >/dev/null || [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/$name ]]; then return 0; fi
  say "installing $name $version by cargo (a few minutes, once)"
  # Built apart from this workspace: its flags and target directory are not ours. Without much optimisation: these tools
  # wait for others, and a machine that has just been set up should not.
  (cd / && env -u CARGO_TARGET_DIR -u RUSTFLAGS CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked "$name@$version" "$@" >&2) || {
    say "error: cargo could not install $name $version; its message stands above"
    exit 1
  }
}

case ${1:-} in
  stack)
    need_stack
    install_packages
    check_redis_version
    ;;
  build | test)
    need_cargo
    need_stack
    need_compiler
    # Gives a process another wall clock.
    [[ $1 == build ]] || need faketime has faketime
    [[ $1 == build ]] || need ffmpeg has ffmpeg
    # Judges the revocation lists that we sign.
    [[ $1 == build ]] || need openssl has openssl
    # The proxy that tests go out through.
    [[ $1 == build ]] || need squid has_squid
    # The real mail server that mail is proved against.
    [[ $1 == build ]] || need exim4-daemon-light test -x /usr/sbin/exim4
    if [[ $1 == test ]]; then
      # Calls: the proxy that reads our records, and callers.
      need kamailio has_kamailio
      need kamailio-redis-modules has_kamailio_redis
      need sip-tester has sipp
    fi
    install_packages
    if [[ $1 == test ]]; then
      # Only now is it certain that there is a python3 to ask.
      missing=()
      need "libpython3.$(python3 -c 'import sys; print(sys.version_info.minor)')" has_python_library
      install_packages
    fi
    check_redis_version
    # Without the part that updates itself, which brings an HTTP client.
    [[ $1 == build ]] || cargo_tool cargo-nextest "$NEXTEST_VERSION" --no-default-features --features default-no-update
    ;;
  check)
    need_cargo
    need_compiler
    need shellcheck has shellcheck
    install_packages
    cargo_tool cargo-deny "$DENY_VERSION"
    ;;
  deploy)
    need prometheus has promtool
    need squid has_squid
    need docker-compose has docker-compose
    need kamailio has_kamailio
    need kamailio-redis-modules has_kamailio_redis
    need systemd has systemd-analyze
    need npm has npm
    need unzip has unzip
    need python3-venv has_venv
    install_packages
    ;;
  containers)
    need_stack
    need buildah has buildah
    need podman has podman
    need runc has_runc
    need debootstrap has_debootstrap
    need binutils has strip
    install_packages
    check_redis_version
    ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
