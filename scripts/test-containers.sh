#!/usr/bin/env bash
# Builds both images without a registry and runs them on a private stack: buildah, on a base system made by debootstrap, and
# podman with runc. Needs root, Debian's mirror for the packages, and some minutes the first time; layers are kept.
#
#   scripts/test-containers.sh                     with the programs of target/debug
#   scripts/test-containers.sh target/release      with those of another folder
#   UPDATE=1 scripts/test-containers.sh            writes the package lists anew
#
# Sizes stand in target/images/sizes.json afterwards.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"
cd "$ROOT"

target=${CARGO_TARGET_DIR:-$ROOT/target}
binaries=${1:-$target/debug}
suite=trixie
keep=$ROOT/.stack/containers
lists=deploy/containers
services=(scaler tasker)

((EUID == 0)) || { say "error: building images without a registry needs root (debootstrap, chroot)"; exit 1; }
for service in "${services[@]}"; do
  [[ -x $binaries/voiceai-$service ]] || {
    say "error: $binaries/voiceai-$service is missing; run: cargo build --workspace --bins"
    exit 1
  }
done
bash "$ROOT/scripts/install.sh" containers
mkdir -p "$keep"
work=$(mktemp -d /tmp/voiceai-images.XXXXXX)
export VOICEAI_STACK_DIR=$work/stack

storage=(--storage-driver overlay --root "$keep/storage" --runroot "$keep/run")
build=(buildah "${storage[@]}" build --layers --isolation chroot --pull-never --format docker)
# Podman wants systemd for the health check's timer and says so with each container; the check itself is run by hand below.
podman() { command podman "${storage[@]}" --cgroup-manager cgroupfs --events-backend none --log-level fatal --runtime runc "$@"; }
hardened=(--network host --read-only --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1024:1024)

clean_up() {
  local code=$?
  trap '' INT TERM
  command podman "${storage[@]}" --cgroup-manager cgroupfs --events-backend none --runtime runc rm --all --force --time 5 >/dev/null 2>&1 || true
  [[ ! -d $VOICEAI_STACK_DIR ]] || bash scripts/stack/stack-down.sh >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# One run at a time: the kept layers are one store.
exec 9>"$keep/lock"
flock 9

passed=0
failed=0
# check NAME COMMAND...: counts, and goes on, so that one run shows all there is to mend.
check() {
  local name=$1
  shift
  if "$@" >"$work/said" 2>&1; then
    passed=$((passed + 1))
    say "ok      $name"
  else
    failed=$((failed + 1))
    say "FAILED  $name"
    tail -n 15 "$work/said" >&2
  fi
}
# exits CODE COMMAND...: true when the command ends with just that code.
exits() {
  local wanted=$1 code=0
  shift
  "$@" || code=$?
  ((code == wanted)) || { echo "exit code $code, expected $wanted"; return 1; }
}
# says PATTERN COMMAND...: true when the command succeeds and its output has the pattern.
says() {
  local pattern=$1 output code=0
  shift
  output=$("$@" 2>&1) || code=$?
  printf '%s\n' "$output"
  ((code == 0)) && grep -qE -e "$pattern" <<<"$output"
}
image() { printf 'localhost/voiceai-%s\n' "$1"; }
inside() { podman run --rm "${hardened[@]}" --entrypoint "$2" "$(image "$1")" "${@:3}"; }

# --- build -----------------------------------------------------------------------------------------------------------

if [[ ! -s $keep/base.tar ]]; then
  say "making the base system: Debian $suite"
  debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/base" >"$work/debootstrap.log" 2>&1 || {
    tail -n 15 "$work/debootstrap.log" >&2
    exit 1
  }
  # shellcheck disable=SC2016  # dpkg-query's own variable
  chroot "$work/base" dpkg-query --show --showformat='${Package}\n' | sort >"$keep/base.packages"
  # Device nodes come from the runtime.
  tar --sort=name --exclude=./dev/* --exclude=./var/cache/apt/archives/*.deb -C "$work/base" -cf "$keep/base.tar.new" .
  mv "$keep/base.tar.new" "$keep/base.tar"
  rm -rf "$work/base"
fi
mkdir "$work/base-context"
ln "$keep/base.tar" "$work/base-context/base.tar" 2>/dev/null || cp "$keep/base.tar" "$work/base-context/"
"${build[@]}" --tag base --file deploy/containers/base.Dockerfile "$work/base-context" >"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; exit 1; }

# The context that .dockerignore leaves of the repository, for images of programs that are there.
context=$work/context
mkdir -p "$context/dist"
cp -r --parents scripts/providers scripts/generate-cloud-init.sh LICENSE LICENSE-APACHE LICENSE-MIT "$context"
for service in "${services[@]}"; do
  strip -o "$context/dist/voiceai-$service" "$binaries/voiceai-$service"
  say "building voiceai-$service"
  "${build[@]}" --build-arg BASE=localhost/base --build-arg BINARIES=prebuilt --build-arg VERSION=0.0.0-test --build-arg REVISION=0123abc \
    --tag "voiceai-$service" --file "deploy/containers/voiceai-$service.Dockerfile" "$context" >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log" >&2
    exit 1
  }
done

# --- what the images are -----------------------------------------------------------------------------------------------

# `about SERVICE JQ`: true when the expression holds for the image's description.
about() { podman inspect --type image "$(image "$1")" | jq -e ".[0] | $2" >/dev/null; }
packages_agree() {
  # shellcheck disable=SC2016  # dpkg-query's own variable
  inside "$1" dpkg-query --show --showformat='${Package}\n' | sort | comm -13 "$keep/base.packages" - >"$work/packages"
  [[ -s $work/packages ]] || { echo "no package beyond the base system was found"; return 1; }
  if [[ -n ${UPDATE:-} ]]; then cp "$work/packages" "$lists/voiceai-$1.packages"; fi
  diff "$lists/voiceai-$1.packages" "$work/packages"
}
# Names that a secret would have: no layer's variable has one.
no_secret() { about "$1" '[.Config.Env[] | select(test("PASSWORD|SECRET|TOKEN|_URL=|ACCESS_KEY"; "i"))] | length == 0'; }
no_setuid() {
  local found
  found=$(podman run --rm --user 0 --entrypoint find --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$(image "$1")" / -xdev -type f -perm /6000) || return 1
  [[ -z $found ]] || { echo "$found"; return 1; }
}
for service in "${services[@]}"; do
  binary=/usr/local/bin/voiceai-$service
  check "$service: the list of packages is the one checked in" packages_agree "$service"
  check "$service: runs as a user by number, above 10000" about "$service" '.Config.User == "10001:10001"'
  check "$service: health check by its own subcommand" about "$service" "(.HealthCheck // .Healthcheck).Test == [\"CMD\", \"$binary\", \"healthcheck\"]"
  check "$service: is stopped by SIGTERM" about "$service" '.Config.StopSignal == "SIGTERM"'
  check "$service: labels of version and revision" about "$service" \
    '.Config.Labels | .["org.opencontainers.image.version"] == "0.0.0-test" and .["org.opencontainers.image.revision"] == "0123abc" and .["org.opencontainers.image.licenses"] == "Apache-2.0 OR MIT"'
  check "$service: no variable of a secret in a layer" no_secret "$service"
  check "$service: no setuid program" no_setuid "$service"
  check "$service: --help" says "Usage: voiceai-$service" podman run --rm "${hardened[@]}" "$(image "$service")" --help
  check "$service: a missing setting ends the start with 4" exits 4 podman run --rm "${hardened[@]}" "$(image "$service")"
  check "$service: a wrong setting ends the start with 4" exits 4 podman run --rm "${hardened[@]}" -e REDIS_URL=nonsense "$(image "$service")"
  check "$service: its root file system cannot be written" exits 1 inside "$service" touch /usr/local/bin/x
done
for tool in bash curl jq 'aws --version'; do
  read -r program argument <<<"$tool"
  check "scaler: has $program" inside scaler "$program" "${argument:---version}"
done
for provider in hetzner aws local; do
  check "scaler: scripts of $provider" inside scaler test -x "/opt/voiceai/providers/$provider/scaleUp.sh"
done
check "scaler: makes start-up documents" inside scaler test -x /opt/voiceai/generate-cloud-init.sh
major=$(sed -n 's/^ARG PG_MAJOR=//p' deploy/containers/voiceai-tasker.Dockerfile)
for tool in pg_dump pg_restore; do
  check "tasker: $tool $major, the program itself" says "\(PostgreSQL\) $major\." inside tasker "/usr/lib/postgresql/$major/bin/$tool" --version
  check "tasker: no wrapper named $tool" exits 1 inside tasker test -e "/usr/bin/$tool"
done
check "tasker: has ffmpeg" inside tasker ffmpeg -version

# --- on the stack ------------------------------------------------------------------------------------------------------

exports=$(bash scripts/stack/stack-up.sh 2>/dev/null) || { say "error: the private stack did not start"; exit 1; }
eval "$exports"
# By name only: values would stand in the process list.
pass=()
for name in REDIS_URL DATABASE_URL S3_ENDPOINT S3_BUCKET S3_REGION S3_ACCESS_KEY S3_SECRET_KEY; do pass+=(--env "$name"); done
live() { podman healthcheck run "$1"; }
ready() { podman exec "$1" "/usr/local/bin/$1" healthcheck --ready; }
stopped_well() {
  local code
  podman stop --time 35 "$1" >/dev/null
  code=$(podman inspect --format '{{.State.ExitCode}}' "$1")
  [[ $code == 0 ]] || { echo "ended with $code"; podman logs "$1" 2>&1 | tail -n 10; return 1; }
  podman logs "$1" >"$work/log" 2>&1
  grep -q 'service stopped' "$work/log"
}
for service in "${services[@]}"; do
  name=voiceai-$service
  podman run --detach --name "$name" "${hardened[@]}" "${pass[@]}" --env ENVIRONMENT=images "$(image "$service")" >/dev/null
  check "$service: becomes ready" wait_for 30 ready "$name"
  check "$service: is healthy" live "$name"
  check "$service: runs as 10001" says '^10001$' podman exec "$name" id -u
done
check "scaler: answers status from inside" says '"term":' podman exec voiceai-scaler voiceai-scaler status --json
check "tasker: refuses a change without a name of who asks" exits 2 podman exec voiceai-tasker voiceai-tasker queue pause default --yes --reason test
for service in "${services[@]}"; do check "$service: ends well at SIGTERM" stopped_well "voiceai-$service"; done

# --- a server of the platform's version ----------------------------------------------------------------------------------

printf '%s\n' 'FROM localhost/base' "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql-$major && rm -rf /var/lib/apt/lists/*" >"$work/postgresql.Dockerfile"
"${build[@]}" --tag postgresql --file "$work/postgresql.Dockerfile" "$work/base-context" >"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; exit 1; }
read -r port <<<"$(free_ports 1)"
podman run --detach --name postgresql --network host --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 localhost/postgresql bash -ec "
  install -d -o postgres /data
  runuser -u postgres -- /usr/lib/postgresql/$major/bin/initdb --pgdata=/data --auth=trust --username=voiceai --encoding=UTF8 --locale=C --no-sync
  exec runuser -u postgres -- /usr/lib/postgresql/$major/bin/postgres -D /data -c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c fsync=off" >/dev/null
export DATABASE_URL=postgres://voiceai@127.0.0.1:$port/postgres
check "a PostgreSQL $major server runs" wait_for 30 psql "$DATABASE_URL" -c 'SELECT 1'
redis-cli -u "$REDIS_URL" FLUSHDB >/dev/null
check "tasker: migrates it" podman run --rm "${hardened[@]}" "${pass[@]}" "$(image tasker)" migrate
check "tasker: backs it up with its own pg_dump" podman run --rm "${hardened[@]}" "${pass[@]}" "$(image tasker)" backup run --yes --as test
check "tasker: proves it by a restore" podman run --rm "${hardened[@]}" "${pass[@]}" "$(image tasker)" backup verify latest
older=$(pg_dump --version | grep -oE '[0-9]+' | head -n 1)
if ((older < major)); then
  # The same service where only an older client is: this machine's.
  refused() {
    local code=0
    "$binaries/voiceai-tasker" backup run --yes --as test >"$work/refusal" 2>&1 || code=$?
    cat "$work/refusal"
    ((code == 4)) && grep -qE "version $major or newer is needed, and there is $older" "$work/refusal"
  }
  check "an older pg_dump ($older) is refused with 4, both versions named, before anything starts" refused
else
  say "note: pg_dump of this machine is $older: the refusal of an older one is not shown here"
fi

mkdir -p "$target/images"
for service in "${services[@]}"; do
  podman inspect --type image "$(image "$service")" | jq -c --arg name "voiceai-$service" --argjson program "$(stat -c %s "$context/dist/voiceai-$service")" \
    '.[0] | {image: $name, bytes: .Size, program_bytes: $program}'
done | jq -s '{images: .}' >"$target/images/sizes.json"
jq -r '.images[] | "size: \(.image) \(.bytes / 1e6 | floor) MB, of it the program \(.program_bytes / 1e6 | floor) MB"' "$target/images/sizes.json" >&2
say "$passed passed, $failed failed"
((failed == 0))
