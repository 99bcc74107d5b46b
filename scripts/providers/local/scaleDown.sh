#!/usr/bin/env bash
# Ends the server INSTANCE_NAME, calls and all. A server that is not there is success; one of another operation is refused.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=/dev/null
. "$HERE/common.sh"

gone() {
  ! is_running
}

if gone; then
  rm -f -- "$STATE_FILE"
  STATE_FILE='' answer absent 0
fi
wait_until 10 test -f "$STATE_FILE" || answer deleting 10 no_state "the server has not told its process id yet"
PID=''
must_be_ours
# The lock is held, so the id in the state file is that of the process that holds it, and not of a later one.
case $PID in
  '' | *[!0-9]*) refuse bad_state "the state file names no process id" ;;
esac
kill -TERM "$PID" 2>/dev/null || true
if ! wait_until 10 gone; then
  kill -KILL "$PID" 2>/dev/null || true
  wait_until 5 gone || answer deleting 10 still_there "process $PID does not end"
fi
rm -f -- "$STATE_FILE" "$RUN_FILE" "$STATE_DIR/$INSTANCE_NAME.log"
STATE_FILE='' answer absent 0
