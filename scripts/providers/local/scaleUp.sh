#!/usr/bin/env bash
# Starts a simulated server as a process of this machine, or adopts the one that this operation started before.
#
# PROVIDER_CONFIG, all optional: stateDir, redisUrl (else REDIS_URL, named in PROVIDER_ENV_PASS), heartbeatKeyPrefix,
# heartbeatMs, heartbeatTtlMs, capacity, bootDelayMs (below 0: never healthy), address, dispatcher.port.
# By hand:
#   OPERATION_ID=try INSTANCE_NAME=dev-voice-01 GROUP_NAME=eu SERVICE=voice LABELS='{"operation":"try"}' \
#     PROVIDER_CONFIG='{"redisUrl":"redis://127.0.0.1:6379"}' ./scaleUp.sh

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=/dev/null
. "$HERE/common.sh"

if is_running; then
  # Between taking its name and telling its address a server is there without a state.
  wait_until 10 test -f "$STATE_FILE" || answer creating 0
  must_be_ours
  answer ready 0
fi
rm -f -- "$STATE_FILE"

command -v python3 >/dev/null || refuse no_python "python3 is not installed"
[ -n "${SET[2]}" ] || refuse no_redis "set redisUrl in the group's scalingConfig, or name REDIS_URL in PROVIDER_ENV_PASS"

# A session of its own and no open pipe of ours: the server outlives this script. Its environment is exactly this list, and
# exported rather than handed to env(1), whose arguments anybody on the machine can read.
(
  for variable in $(compgen -e); do
    case $variable in PATH) ;; *) export -n "${variable?}" ;; esac
  done
  export NAME=$INSTANCE_NAME SERVICE=${SERVICE:-voice} GROUP=${GROUP_NAME:-} ID="local-$INSTANCE_NAME-$$"
  export LABELS=${LABELS:-} STATE_DIR REDIS_URL=${SET[2]} HEARTBEAT_KEY_PREFIX=${SET[3]} HEARTBEAT_MS=${SET[4]}
  export HEARTBEAT_TTL_MS=${SET[5]} CAPACITY=${SET[6]} BOOT_DELAY_MS=${SET[7]} ADDRESS=${SET[8]} PORT=${SET[9]}
  exec 9>&- </dev/null >"$STATE_DIR/$INSTANCE_NAME.log" 2>&1
  exec setsid python3 "$HERE/voice-server.py" --name "$INSTANCE_NAME"
) &
SERVER=$!

# One that ends before it has told its address will not tell it any more.
told_or_ended() {
  [ -f "$STATE_FILE" ] || ! kill -0 "$SERVER" 2>/dev/null
}
wait_until 15 told_or_ended || true
if [ -f "$STATE_FILE" ]; then
  answer ready 0
fi
tail -n 5 -- "$STATE_DIR/$INSTANCE_NAME.log" >&2 || true
if is_running; then
  answer creating 0
fi
answer failed 10 not_started "the server ended at once; see $STATE_DIR/$INSTANCE_NAME.log"
