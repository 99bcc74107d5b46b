#!/usr/bin/env bash
# Lists every instance of the region that bears LABELS (managed-by and environment), whichever group and operation made it. Exit 0
# only with the whole list: `{"servers":[{"id","name","status","labels"}],"error":null}`.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# It is about no instance in particular; the answer to an error names the script.
export INSTANCE_NAME=list PROVIDER_ID=''
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

FILTERS=$(printf '%s' "$TAGS" | jq -c '[.[] | select(.Key | IN("managed-by", "environment")) | select(.Value != "") | {Name: "tag:\(.Key)", Values: [.Value]}]
  | if length == 2 then . + [{Name: "instance-state-name", Values: ["pending", "running", "stopping", "stopped"]}] else empty end')
[ -n "$FILTERS" ] || refuse bad_input "LABELS must hold managed-by and environment: whose instances are to be listed"

# The command line goes through all pages by itself and fails as a whole.
call ec2 describe-instances --filters "$FILTERS" || give_up_as_told
printf '%s' "$OUT" | jq -c '
  if (.Reservations | type) != "array" or (.NextToken // "") != "" then error("no whole list") else . end
  | {servers: [.Reservations[].Instances | if type == "array" then .[] else error("no list") end
      | ([.Tags[]? | {(.Key): .Value}] | add // {}) as $tags
      | {id: (.InstanceId | if type == "string" then . else error("no id") end), name: ($tags.Name // ""),
         status: ({pending: "creating", running: "ready"}[.State.Name // ""] // "failed"), labels: ($tags | del(.Name))}],
     error: null}' 2>/dev/null || give_up 10 bad_answer "the answer holds no whole list of instances"
