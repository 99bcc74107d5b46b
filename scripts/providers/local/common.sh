# What the three scripts of the provider `local` share. Sourced, never run.
# shellcheck shell=bash
#
# A server is a process of this machine (voice-server.py). STATE_DIR/NAME.run is locked for as long as it lives, which is
# the one truth about its existence; STATE_DIR/NAME.json says where it is and whose it is.

set -euo pipefail
umask 077

# answer STATUS EXIT [CODE MESSAGE]: the one line of output, from the state file where there is one.
answer() {
  local status=$1 exit_code=$2 code=${3:-} message=${4:-} state='{}'
  if [ -f "${STATE_FILE:-}" ]; then
    state=$(cat -- "$STATE_FILE" 2>/dev/null) || state='{}'
  fi
  jq -cn --argjson state "${state:-\{\}}" --arg name "${INSTANCE_NAME:-}" --arg status "$status" --arg code "$code" \
    --arg message "$message" --argjson candidate "${CANDIDATE:-null}" '{
      id: ($state.id // null), name: $name, status: $status, ip: ($state.ip // null), private_ip: ($state.ip // null),
      type: ($candidate.type? // "process"), location: ($candidate.location? // "local"),
      error: (if $code == "" then null else {code: $code, message: $message, retry_after_s: null} end)}'
  exit "$exit_code"
}

refuse() {
  answer failed 20 "$1" "$2"
}

# config KEY DEFAULT: a value of PROVIDER_CONFIG. The default goes by the environment: it may be an address with a password.
config() {
  DEFAULT=$2 jq -r --arg key "$1" '.[$key] // $ENV.DEFAULT | tostring' <<<"$PROVIDER_CONFIG"
}

label() {
  jq -r --arg key "$1" '.[$key] // ""' <<<"${LABELS:-\{\}}"
}

for tool in jq flock; do
  if ! command -v "$tool" >/dev/null; then
    echo "$0: $tool is not installed" >&2
    exit 20
  fi
done

: "${PROVIDER_CONFIG:=}"
if [ -z "$PROVIDER_CONFIG" ]; then PROVIDER_CONFIG='{}'; fi
if [ -z "${LABELS:-}" ]; then LABELS='{}'; fi
if [ -z "${CANDIDATE:-}" ]; then CANDIDATE='null'; fi
for json in "$PROVIDER_CONFIG" "$LABELS" "$CANDIDATE"; do
  if ! jq -e . >/dev/null 2>&1 <<<"${json/#null/\{\}}"; then
    LABELS='{}' CANDIDATE='null' refuse bad_input "PROVIDER_CONFIG, LABELS and CANDIDATE must be JSON"
  fi
done

case ${INSTANCE_NAME:-} in
  '' | *[!a-z0-9-]* | -* | *-) INSTANCE_NAME='' refuse bad_input "INSTANCE_NAME is no host name" ;;
esac

STATE_DIR=$(config stateDir "${TMPDIR:-/tmp}/voiceai-local")
mkdir -p -- "$STATE_DIR"
STATE_FILE=$STATE_DIR/$INSTANCE_NAME.json
RUN_FILE=$STATE_DIR/$INSTANCE_NAME.run

# One script at a time per name: a killed leader's script may still be at work.
exec 9>"$STATE_DIR/$INSTANCE_NAME.lock"
if ! flock -w 60 9; then
  answer failed 10 busy "another script works on $INSTANCE_NAME"
fi

is_running() {
  [ -e "$RUN_FILE" ] && ! flock -n -- "$RUN_FILE" true
}

# The operation that made the running server.
owner() {
  jq -r '.labels.operation // ""' -- "$STATE_FILE" 2>/dev/null || true
}

# wait_until SECONDS COMMAND...: looks ten times a second.
wait_until() {
  local tries=$(($1 * 10))
  shift
  until "$@"; do
    tries=$((tries - 1))
    if [ "$tries" -le 0 ]; then return 1; fi
    sleep 0.1
  done
}
