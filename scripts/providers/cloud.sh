# What the scripts of the providers `hetzner` and `aws` say, and how. Sourced by their common.sh, once MADE, THING, MASKED and FIELDS
# are set; never run.
# shellcheck shell=bash
#
#   MADE    name of the variable with the server, as the API's JSON; empty there: none is known
#   THING   what the provider calls it
#   MASKED  name of the variable with the secret that no line may hold
#   FIELDS  jq: what the answer says of the server, from its JSON (or null) and $candidate: {id, ip, private_ip, type, location}

set -euo pipefail
umask 077
# The patterns of these scripts mean bytes.
export LC_ALL=C

EXISTS=no # yes once the server of this operation is known to be there
UNSURE=no # yes while a request may have made a server that nobody has seen yet

# masked TEXT: without the secret.
masked() {
  local secret=${!MASKED:-}
  if [ -n "$secret" ]; then
    printf '%s' "${1//"$secret"/[REDACTED]}"
  else
    printf '%s' "$1"
  fi
}

say() { printf '%s: %s\n' "${0##*/}" "$(masked "$*")" >&2; }

# answer STATUS EXIT [CODE MESSAGE [RETRY_AFTER_S]]: the one line of output, from the server where there is one.
answer() {
  local status=$1 exit_code=$2 code=${3:-} message retry=${5:-null} made=${!MADE:-}
  message=$(masked "${4:-}")
  printf '%s' "${made:-null}" | jq -c --arg name "${INSTANCE_NAME:-}" --arg status "$status" --arg code "$code" \
    --arg message "$message" --argjson retry "$retry" '
      def text: if type == "string" and . != "" then . else null end;
      def parsed: try fromjson catch {};
      (($ENV.CANDIDATE // "{}") | parsed) as $candidate
      | ('"$FIELDS"') as $it
      | { id: $it.id, name: $name, status: $status, ip: $it.ip, private_ip: $it.private_ip,
          type: ($it.type // ($candidate.type? | text)), location: ($it.location // ($candidate.location? | text)),
          error: (if $code == "" then null else
            {code: $code, message: ($message | gsub("[[:cntrl:]]+"; " ") | .[0:500]), retry_after_s: $retry} end) }'
  exit "$exit_code"
}

# give_up EXIT CODE MESSAGE [RETRY_AFTER_S]: an exit other than 0 tells the scaler that nothing was made. Once the server is
# there that would be a lie: it is reported as on its way, and the next look at its status goes on from there.
give_up() {
  if [ "$EXISTS" = yes ]; then
    say "$2: $3; the $THING is there, its state will be asked for again"
    answer creating 0 "$2" "$3" "${4:-null}"
  fi
  # Not one of the agreed exits: the outcome is unknown, and the scaler goes on asking by name.
  if [ "$UNSURE" = yes ]; then
    answer failed 1 "$2" "$3; whether the $THING was made is not known yet" "${4:-null}"
  fi
  answer failed "$@"
}

refuse() { give_up 20 "$@"; }

# need TOOL...: ends the script without an answer when one is missing, since jq may be the one.
need() {
  local tool
  for tool in "$@"; do
    if ! command -v "$tool" >/dev/null; then
      echo "$0: $tool is not installed" >&2
      exit 20
    fi
  done
}

# check_name: INSTANCE_NAME reaches paths and queries.
check_name() {
  case ${INSTANCE_NAME:-} in
    '' | *[!a-z0-9-]* | -* | *-) INSTANCE_NAME='' refuse bad_input "INSTANCE_NAME is no host name" ;;
  esac
  [ "${#INSTANCE_NAME}" -le 63 ] || refuse bad_input "INSTANCE_NAME is longer than 63 characters"
  export INSTANCE_NAME
}

must_name_operation() { [ -n "$OPERATION" ] || refuse bad_input "LABELS.operation is missing: it says whose server may be touched"; }
