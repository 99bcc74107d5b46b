#!/usr/bin/env bash
# Lists every server of the project that bears LABELS (managed-by and environment), whichever group and operation made it. Exit 0
# only with the whole list: `{"servers":[{"id","name","status","labels"}],"error":null}`.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# It is about no server in particular; the answer to an error names the script.
export INSTANCE_NAME=list PROVIDER_ID=''
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

# Servers a page, the most that the API gives.
PAGE=50
# Pages of one list: a project does not hold more servers.
PAGES_MAX=400

# Label values are made of characters that need no escaping in a URL.
SELECTOR=$(printf '%s' "$ALL_LABELS" | jq -r '[to_entries[] | select(.key | IN("managed-by", "environment")) | select(.value != "")]
  | if length == 2 then map("\(.key)%3D%3D\(.value)") | join("%2C") else "" end')
[ -n "$SELECTOR" ] || refuse bad_input "LABELS must hold managed-by and environment: whose servers are to be listed"

SERVERS='' page=1
while :; do
  [ "$page" -le "$PAGES_MAX" ] || give_up 10 bad_answer "the list has no end"
  api GET "/servers?label_selector=$SELECTOR&sort=id&per_page=$PAGE&page=$page" || give_up 10 bad_answer "GET /servers: $ERROR_CODE"
  # A page whose form is not understood is no proof of anything.
  found=$(printf '%s' "$BODY" | jq -c '
    def pages: .meta.pagination | if type == "object" and (.total_entries | type) == "number" and (.page | type) == "number" then .
      else error("no pages") end;
    if (.servers | type) != "array" then error("no list") else . end
    | [.servers[] | {id: (.id | if type == "number" then tostring else error("no id") end), name: (.name | if type == "string" then . else error("no name") end),
        status: ({initializing: "creating", starting: "creating", running: "ready", deleting: "deleting"}[.status // ""] // "creating"),
        labels: (.labels | if type == "object" then . else error("no labels") end)}] as $servers
    | pages | {servers: $servers, total: .total_entries, page, next: .next_page}' 2>/dev/null) || give_up 10 bad_answer "a page of the list is none"
  SERVERS=$SERVERS$found$'\n'
  next=$(printf '%s' "$found" | jq -r '.next // empty')
  [ -n "$next" ] || break
  [ "$next" = $((page + 1)) ] || give_up 10 bad_answer "page $page of the list is followed by page $next"
  page=$next
done

# Servers that come and go between two pages, or a page that is answered twice, leave gaps: such a list is not whole.
printf '%s' "$SERVERS" | jq -cs '
  ([.[].servers[]] | unique_by(.id)) as $servers
  | if (map(.total) | unique | length) != 1 or ($servers | length) != .[0].total or ([.[].page] | . != [range(1; length + 1)])
    then empty else {servers: $servers, error: null} end' | grep . || give_up 10 partial "the pages of the list do not fit together"
