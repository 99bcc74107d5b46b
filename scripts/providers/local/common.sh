# What the three scripts of the provider `local` share. Sourced, never run.
# shellcheck shell=bash
#
# A server is a process of this machine (voice-server.py). STATE_DIR/NAME.run is locked for as long as it lives, which is
# the one truth about its existence; STATE_DIR/NAME.json says where it is and whose it is.

set -euo pipefail
umask 077

# answer STATUS EXIT [CODE MESSAGE]: the one line of output, from the state file where there is one.
answer() {
  local status=$1 exit_code=$2 code=${3:-} message=${4:-} state=
  if [ -f "${STATE_FILE:-}" ]; then
    state=$(cat -- "$STATE_FILE" 2>/dev/null) || state=
  fi
  jq -cn --argjson state "${state:-null}" --arg name "${INSTANCE_NAME:-}" --arg status "$status" --arg code "$code" \
    --arg message "$message" '
      def parsed: try fromjson catch {};
      (($ENV.CANDIDATE // "{}") | parsed) as $candidate |
      { id: $state.id, name: $name, status: $status, ip: $state.ip, private_ip: $state.ip,
        type: ($candidate.type? // "process"), location: ($candidate.location? // "local"),
        error: (if $code == "" then null else {code: $code, message: $message, retry_after_s: null} end) }'
  exit "$exit_code"
}

refuse() {
  answer failed 20 "$1" "$2"
}

for tool in jq flock; do
  if ! command -v "$tool" >/dev/null; then
    echo "$0: $tool is not installed" >&2
    exit 20
  fi
done

case ${INSTANCE_NAME:-} in
  '' | *[!a-z0-9-]* | -* | *-) INSTANCE_NAME='' refuse bad_input "INSTANCE_NAME is no host name" ;;
esac

# Everything from the JSON of the environment in one go, a value a line. Secrets stay in the environment: what is written on
# a command line can be read by anybody on the machine.
mapfile -t SET < <(jq -rn '
  def object($name; $text): ($text // "") | if . == "" then {} else fromjson end
    | if type == "object" then . else error($name) end;
  object("LABELS"; $ENV.LABELS) as $labels
  | object("PROVIDER_CONFIG"; $ENV.PROVIDER_CONFIG) as $config
  | ( $config.stateDir // (($ENV.TMPDIR // "/tmp") + "/voiceai-local"),
      $labels.operation // "",
      $config.redisUrl // $ENV.REDIS_URL // "",
      $config.heartbeatKeyPrefix // $ENV.HEARTBEAT_KEY_PREFIX // "voiceai:heartbeat:",
      $config.heartbeatMs // 1000,
      $config.heartbeatTtlMs // 5000,
      $config.capacity // 100,
      $config.bootDelayMs // 0,
      $config.address // "",
      $config.dispatcher.port? // 5060 )
  | tostring | gsub("[\n\r]"; "")' 2>/dev/null)
if [ "${#SET[@]}" -ne 10 ]; then
  refuse bad_input "PROVIDER_CONFIG and LABELS must be JSON objects"
fi
STATE_DIR=${SET[0]}
OWNER_WANTED=${SET[1]}

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

# Refuses a running server that another operation made; leaves its process id in PID.
must_be_ours() {
  local owner
  # shellcheck disable=SC2034 # scaleDown.sh reads PID
  { read -r owner && read -r PID; } < <(jq -r '.labels.operation // "", .pid // ""' -- "$STATE_FILE") || true
  if [ "${owner:-}" != "$OWNER_WANTED" ]; then
    refuse not_ours "a server of another operation runs under this name"
  fi
}

# wait_until SECONDS COMMAND...: looks twenty times a second.
wait_until() {
  local tries=$(($1 * 20))
  shift
  until "$@"; do
    tries=$((tries - 1))
    if [ "$tries" -le 0 ]; then return 1; fi
    sleep 0.05
  done
}
