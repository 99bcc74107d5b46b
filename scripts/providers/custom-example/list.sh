#!/usr/bin/env bash
# Lists every host that is given away, with the labels of the server that it is. Optional: without it nobody looks for orphans.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# It is about no server in particular.
export INSTANCE_NAME=list LISTING=yes
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

shopt -s nullglob
claims=("$STATE_DIR"/*.json)
if [ "${#claims[@]}" -eq 0 ]; then
  echo '{"servers":[],"error":null}'
  exit 0
fi
# One file that cannot be read, and the list is not whole.
jq -ces 'map({id: .host.id, name, status: "ready", labels: (.labels // {operation: .operation})})
  | if all(.[]; (.id | type) == "string" and (.name | type) == "string") then {servers: ., error: null} else error("no claim") end' \
  -- "${claims[@]}" 2>/dev/null || answer failed 10 bad_state "a file in $STATE_DIR cannot be read"
