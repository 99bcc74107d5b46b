#!/usr/bin/env bash
# Makes a free host the server INSTANCE_NAME, or reports the one that this operation made it before.
# By hand:
#   OPERATION_ID=try INSTANCE_NAME=dev-voice-01 LABELS='{"operation":"try"}' \
#     PROVIDER_CONFIG='{"stateDir":"/tmp/pool","hosts":[{"id":"h1","ip":"10.0.0.11"}]}' ./scaleUp.sh

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

if find_host; then
  must_be_ours
else
  while IFS= read -r host; do
    CLAIM=$STATE_DIR/$(printf '%s' "$host" | jq -r .id).json
    if [ ! -e "$CLAIM" ]; then
      HOST=$host
      break
    fi
  done < <(printf '%s' "$PARSED" | jq -c '.candidate as $want | .hosts[]
    | select(($want.type // .type) == .type and ($want.location // .location) == .location)')
  [ -n "$HOST" ] || answer failed 11 out_of_stock "no host of this type and location is free"
  # Whole or not at all, and before anything is started: a script that is killed now leaves a claim that the next one adopts.
  printf '%s' "$HOST" | jq -c --arg name "$INSTANCE_NAME" --arg operation "$OPERATION" --argjson labels "$(of_parsed '.labels | tojson')" \
    '{name: $name, operation: $operation, labels: $labels, host: .}' >"$STATE_DIR/.new"
  mv -f -- "$STATE_DIR/.new" "$CLAIM"
fi
# May be run again: it must not mind a host that runs.
with_host host_start || answer failed 0 not_started "the host does not start; see the log"
answer ready 0
