# What the scripts of the provider `custom-example` share. Sourced, never run.
# shellcheck shell=bash
#
# Hands out hosts that already run, from the list PROVIDER_CONFIG.hosts: [{"id","ip","privateIp","type","location"}, ...].
# STATE_DIR/HOST-ID.json says which server a host is, and whose. Copy this folder, and put into hosts.sh what makes a host a
# server: host_start and host_stop, which get the host's addresses in HOST_IP and HOST_PRIVATE_IP.

set -euo pipefail
umask 077
# The patterns below mean bytes.
export LC_ALL=C

HOST=''   # the host, as JSON; empty: none is known

# answer STATUS EXIT [CODE MESSAGE]: the one line of output, from HOST where there is one.
answer() {
  printf '%s' "${HOST:-null}" | jq -c --arg name "${INSTANCE_NAME:-}" --arg status "$1" --arg code "${3:-}" --arg message "${4:-}" '
    { id: .id, name: $name, status: $status, ip: .ip, private_ip: .privateIp, type: .type, location: .location,
      error: (if $code == "" then null else {code: $code, message: $message, retry_after_s: null} end) }'
  exit "$2"
}

refuse() { answer failed 20 "$@"; }

for tool in jq flock; do
  if ! command -v "$tool" >/dev/null; then
    echo "$0: $tool is not installed" >&2
    exit 20
  fi
done

case ${INSTANCE_NAME:-} in
  '' | *[!a-z0-9-]* | -* | *-) INSTANCE_NAME='' refuse bad_input "INSTANCE_NAME is no host name" ;;
esac

# Everything from the JSON of the environment in one go. An id becomes a file's name, so it is checked like one.
PARSED=$(jq -cn '
  def object($text): ($text // "") | (if . == "" then {} else [try fromjson catch null][0] end)
    | if type == "object" then . else error("LABELS, PROVIDER_CONFIG and CANDIDATE must be JSON objects") end;
  try (
    object($ENV.LABELS) as $labels | object($ENV.PROVIDER_CONFIG) as $config | object($ENV.CANDIDATE) as $candidate
    | if $ENV.LISTING == "yes" then . elif ($labels.operation | type) != "string" or ($labels.operation | test("^[A-Za-z0-9._-]{1,63}$") | not)
      then error("LABELS.operation is missing: it says whose server may be touched") else . end
    | if ($config.hosts | type) != "array" or ($config.hosts | all(.[]; type == "object" and (.id | type == "string" and test("^[A-Za-z0-9-]{1,63}$"))
        and (.ip == null or (.ip | type == "string" and test("^[0-9A-Fa-f.:]+$"))) and (.privateIp == null or (.privateIp | type == "string" and test("^[0-9A-Fa-f.:]+$")))) | not)
      then error("scalingConfig.hosts is not a list of hosts with an id of letters, digits and `-` and addresses") else . end
    | if ($config.stateDir // "/var/lib/voiceai/custom-example" | type == "string" and startswith("/")) then . else error("scalingConfig.stateDir is no absolute path") end
    | { operation: $labels.operation, labels: $labels, hosts: $config.hosts, folder: ($config.stateDir // "/var/lib/voiceai/custom-example"), candidate: $candidate }
  ) catch {bad: .}') || refuse bad_input "the environment holds no JSON"
PROBLEM=$(printf '%s' "$PARSED" | jq -r '.bad? // empty')
[ -z "$PROBLEM" ] || refuse bad_input "$PROBLEM"
of_parsed() { printf '%s' "$PARSED" | jq -r "$1"; }
OPERATION=$(of_parsed .operation)
STATE_DIR=$(of_parsed .folder)

# What the operator's copy adds. Here a host needs nothing.
host_start() { :; }
host_stop() { :; }
HOOKS=$(dirname -- "${BASH_SOURCE[0]}")/hosts.sh
if [ -f "$HOOKS" ]; then
  # shellcheck source=/dev/null
  . "$HOOKS"
fi

# One script at a time for all hosts: a killed leader's may still be at work.
mkdir -p -- "$STATE_DIR"
exec 9>"$STATE_DIR/.lock"
flock -w 60 9 || answer failed 10 busy "another script works on these hosts"

# with_host COMMAND: runs a hook, without the lock, which what it starts would go on holding.
with_host() {
  local HOST_IP HOST_PRIVATE_IP
  HOST_IP=$(printf '%s' "$HOST" | jq -r '.ip // ""')
  HOST_PRIVATE_IP=$(printf '%s' "$HOST" | jq -r '.privateIp // ""')
  export HOST_IP HOST_PRIVATE_IP
  "$1" 9>&- >&2
}

# find_host: sets HOST and CLAIM, the file that gives it to INSTANCE_NAME. Returns 1 when no host is this server.
# shellcheck disable=SC2034 # for the scripts that source this
find_host() {
  local file text
  for file in "$STATE_DIR"/*.json; do
    [ -f "$file" ] || continue
    # A file that cannot be read is no proof that there is no such server.
    text=$(jq -ce 'select((.name | type) == "string" and (.operation | type) == "string")' -- "$file" 2>/dev/null) ||
      answer failed 10 bad_state "$file cannot be read"
    if [ "$(printf '%s' "$text" | jq -r .name)" = "$INSTANCE_NAME" ]; then
      HOST=$(printf '%s' "$text" | jq -c .host) CLAIM=$file
      OWNER=$(printf '%s' "$text" | jq -r .operation)
      return 0
    fi
  done
  return 1
}

must_be_ours() {
  if [ "$OWNER" != "$OPERATION" ]; then
    HOST='' refuse not_ours "the host of this name was given to another operation"
  fi
}
