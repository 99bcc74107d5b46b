#!/usr/bin/env bash
# Says whether the server INSTANCE_NAME runs, and where. Exit 14 when it does not.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source=/dev/null
. "$HERE/common.sh"

if ! is_running; then
  STATE_FILE='' answer absent 14
fi
if [ -f "$STATE_FILE" ]; then
  answer ready 0
fi
answer creating 0
