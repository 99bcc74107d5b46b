# What the scripts of the provider `hetzner` share. Sourced, never run.
# shellcheck shell=bash
#
# Hetzner Cloud knows no client token: the server's name, unique in its project, is what makes a creation idempotent, and the
# label `operation` says whose server bears it. The API token reaches curl through a pipe: no argument list and no file has it.

API_DEFAULT=https://api.hetzner.cloud/v1
# Actions per poll.
ACTIONS_MAX=25
TRIES_MAX=5
RETRY_CAP_MS=60000

SERVER='' # the server, as the API's JSON; empty: none is known
HTTP=0 BODY='' ERROR_CODE='' ERROR_MESSAGE=''
# shellcheck disable=SC2034 # for the scripts that source this
RATE_LIMIT='' RATE_LEFT='' RATE_RESET='' RETRY_AFTER='' RUNNING=()

# shellcheck disable=SC2034 # for cloud.sh
MADE=SERVER THING=server MASKED=TOKEN
# A server without IPv4 has a network of 64 bits; its own address is the first one.
# shellcheck disable=SC2034 # for cloud.sh
FIELDS='{ id: (.id? | if . == null then null else tostring end),
  ip: ((.public_net?.ipv4?.ip? | text) // (.public_net?.ipv6?.ip? | text | if . then sub("/64$"; "1") else . end)),
  private_ip: ([.private_net?[]?.ip? | text | select(.)] | first), type: (.server_type?.name? | text),
  location: ((.location?.name? | text) // (.datacenter?.location?.name? | text)) }'
# shellcheck source-path=SCRIPTDIR source=../cloud.sh
. "$HERE/../cloud.sh"
need curl jq
check_name
case ${PROVIDER_ID:-} in
  *[!0-9]*) refuse bad_input "PROVIDER_ID is no id of Hetzner Cloud, which is a number" ;;
esac

# Everything from the JSON of the environment in one go, a value a line; the first tells what is wrong with it.
mapfile -t SET < <(jq -rn '
  # In an array, so that jq 1.6 does not take later errors for those of this `try`.
  def object($name; $text): ($text // "") | (if . == "" then {} else [try fromjson catch null][0] end)
    | if type == "object" then . else error($name + " is not a JSON object") end;
  def name_ok: test("^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$");
  def key_ok: (split("/") | length <= 2 and all(.[]; name_ok or (test("^[A-Za-z0-9.-]{1,253}$"))))
    and (split("/") | last | name_ok);
  def whole($low; $high; $name): if type == "number" and . == floor and . >= $low and . <= $high then .
    else error("PROVIDER_CONFIG.\($name) is not a whole number from \($low) to \($high)") end;
  try (
    object("LABELS"; $ENV.LABELS) as $labels
    | object("PROVIDER_CONFIG"; $ENV.PROVIDER_CONFIG) as $config
    | object("CANDIDATE"; $ENV.CANDIDATE) as $candidate
    | (if $config.labels == null then {} elif ($config.labels | type) == "object" then $config.labels
       else error("PROVIDER_CONFIG.labels is not an object") end) as $more
    # Ours come last: the group may add labels, it may not change whose server it is.
    | ($more + $labels) as $all
    | ($all | to_entries[] | select((.key | key_ok | not) or (.value | type) != "string" or (.value != "" and (.value | name_ok | not)))
       | .key | error("the label \(.) cannot be a label: letters, digits, `.`, `_`, `-`, at most 63, alphanumeric at both ends")),
    ($config.loadBalancerLabel // "in-service=true"
       | if type == "string" and (split("=") | length == 2 and (.[0] | key_ok) and (.[1] | name_ok)) then split("=")
         else error("PROVIDER_CONFIG.loadBalancerLabel is not KEY=VALUE, both made as labels are") end) as $balancer
    | (if $labels | has($balancer[0]) then error("PROVIDER_CONFIG.loadBalancerLabel may not be \($balancer[0]), which says whose the server is")
       else . end)
    # Gathered first: an error in the last of them must not come after the word that all is well.
    | ["ok", ($labels.operation // ""), ($all | del(.[$balancer[0]]) | tojson), $balancer[0], $balancer[1],
      ($config | has("loadBalancerLabel") | tostring),
      (($config.waitSeconds // 120 | whole(0; 3000; "waitSeconds")) * 1000 | tostring),
      ($config.pollMs // 1000 | whole(10; 60000; "pollMs") | tostring)] | .[]
  ) catch "bad: \(.)"' 2>/dev/null)
case ${SET[0]:-} in
  ok) ;;
  bad:*) refuse bad_input "${SET[0]#bad: }" ;;
  *) refuse bad_input "LABELS, PROVIDER_CONFIG and CANDIDATE must be JSON objects" ;;
esac
OPERATION=${SET[1]}
# shellcheck disable=SC2034 # for the scripts that source this
{
  ALL_LABELS=${SET[2]} BALANCER_KEY=${SET[3]} BALANCER_VALUE=${SET[4]} BALANCER_NAMED=${SET[5]}
}
WAIT_MS=${SET[6]} POLL_MS=${SET[7]}

TOKEN=${HETZNER_API_TOKEN:-}
case $TOKEN in
  '') refuse unauthorized "HETZNER_API_TOKEN is not set; it belongs into Secrets Manager or the bootstrap file" ;;
  # It is written into a curl configuration: nothing may end its line or its quotes.
  *[!\ -~]* | *[\"\\]*) TOKEN='' refuse unauthorized "HETZNER_API_TOKEN holds a character that no token has" ;;
esac

ENDPOINT=${HCLOUD_ENDPOINT:-$API_DEFAULT}
ENDPOINT=${ENDPOINT%"${ENDPOINT##*[!/]}"}
[[ $ENDPOINT =~ ^https?://[][A-Za-z0-9._~%:-]+(/[A-Za-z0-9._~%/-]*)?$ ]] ||
  refuse bad_input "HCLOUD_ENDPOINT is not a URL with http or https, without user and query"
# Only a host: the API's path is the usual one.
[[ $ENDPOINT =~ ^https?://[^/]+$ ]] && ENDPOINT=$ENDPOINT/v1
# curl reads the proxy of plain HTTP from the lower-case name alone.
if [ -n "${HTTP_PROXY:-}" ]; then export http_proxy=$HTTP_PROXY; fi

# shellcheck source-path=SCRIPTDIR source=../timing.sh
. "$HERE/../timing.sh"

# --- requests ---------------------------------------------------------------------------------------------------------

field() { printf '%s' "$BODY" | jq -r "$1" 2>/dev/null || true; }

# read_head LINES: what the answer's head says about the rate limit.
# shellcheck disable=SC2034 # for the scripts that source this
read_head() {
  local line name value
  RATE_LIMIT='' RATE_LEFT='' RATE_RESET='' RETRY_AFTER=''
  while IFS= read -r line; do
    line=${line%$'\r'}
    name=${line%%:*} value=${line#*:}
    value=${value//[[:space:]]/}
    case $value in '' | *[!0-9]* | ????????????*) continue ;; esac
    # Without zeros in front, which would make it octal.
    value=$((10#$value))
    case ${name,,} in
      ratelimit-limit) RATE_LIMIT=$value ;;
      ratelimit-remaining) RATE_LEFT=$value ;;
      ratelimit-reset) RATE_RESET=$value ;;
      retry-after) RETRY_AFTER=$value ;;
    esac
  done <<<"$1"
}

# request METHOD PATH [BODY]: one request. Sets HTTP (0: no answer), BODY, ERROR_* and RATE_*; CURL is curl's own exit code.
request() {
  local raw head text='' limit
  limit=$(((DEADLINE - $(uptime_ms)) / 1000))
  [ "$limit" -le 60 ] || limit=60
  [ "$limit" -ge 15 ] || limit=15
  local -a how=(-q --silent --show-error --globoff --include --suppress-connect-headers --proto '=http,https'
    --connect-timeout 10 --max-time "$limit" --user-agent voiceai-scaler --header 'Accept: application/json'
    --header Expect: --request "$1")
  HTTP=0 BODY='' ERROR_CODE='' ERROR_MESSAGE=''
  if [ $# -ge 3 ]; then
    raw=$(curl "${how[@]}" --header 'Content-Type: application/json' --data-binary @<(printf '%s' "$3") \
      --config <(printf 'header = "Authorization: Bearer %s"\n' "$TOKEN") "$ENDPOINT$2" || printf '\n#%s' "$?")
  else
    raw=$(curl "${how[@]}" --config <(printf 'header = "Authorization: Bearer %s"\n' "$TOKEN") "$ENDPOINT$2" || printf '\n#%s' "$?")
  fi
  CURL=0
  if [[ $raw =~ $'\n#'([0-9]+)$ ]]; then
    CURL=${BASH_REMATCH[1]}
    ERROR_CODE=unreachable ERROR_MESSAGE="no answer from the API (curl $CURL)"
    read_head ''
    return
  fi
  # More than one head: 1xx answers come before the real one.
  while [[ $raw == HTTP/* ]]; do
    head=${raw%%$'\r\n\r'*}
    raw=${raw#"$head"}
    raw=${raw#$'\r\n\r'}
    raw=${raw#$'\n'}
    [[ $head =~ ^HTTP/[0-9.]+\ ([0-9]{3}) ]] && HTTP=${BASH_REMATCH[1]}
    case $HTTP in 1??) ;; *) break ;; esac
  done
  BODY=$raw
  read_head "$head"
  case $HTTP in
    2??) ;;
    *)
      text=$(field '(.error.code? // "" | tostring | gsub("[^A-Za-z0-9_.-]"; "")), (.error.message? // "" | tostring | gsub("[[:cntrl:]]+"; " "))')
      ERROR_CODE=${text%%$'\n'*}
      [[ $text != *$'\n'* ]] || ERROR_MESSAGE=${text#*$'\n'}
      [ -n "$ERROR_CODE" ] || ERROR_CODE=http_$HTTP
      [ -n "$ERROR_MESSAGE" ] || ERROR_MESSAGE="the API answered HTTP $HTTP"
      ;;
  esac
}

# Seconds until the limit allows requests again.
rate_rest() {
  local rest=${RETRY_AFTER:-}
  if [ -z "$rest" ] && [ -n "$RATE_RESET" ]; then
    rest=$((RATE_RESET - $(date +%s)))
  fi
  [ -n "$rest" ] || rest=60
  [ "$rest" -ge 1 ] || rest=1
  [ "$rest" -le 7200 ] || rest=7200
  printf '%s' "$rest"
}

# exit_of CODE: the agreed exit of an error of the API.
exit_of() {
  case $1 in
    resource_unavailable | placement_error) echo 11 ;;
    resource_limit_exceeded) echo 12 ;;
    rate_limit_exceeded | http_429) echo 13 ;;
    locked | conflict | timeout | bad_gateway | unavailable | server_error | service_error | maintenance | unreachable) echo 10 ;;
    http_401 | http_403) echo 20 ;;
    # Without a word of the API's: a proxy or a gateway on the way.
    http_*) echo 10 ;;
    *) echo 20 ;;
  esac
}

# give_up_as_told: ends with what the last answer says.
give_up_as_told() {
  local code
  code=$(exit_of "$ERROR_CODE")
  if [ "$code" = 13 ]; then
    give_up 13 "$ERROR_CODE" "$ERROR_MESSAGE" "$(rate_rest)"
  fi
  give_up "$code" "$ERROR_CODE" "$ERROR_MESSAGE"
}

# api METHOD PATH [BODY]: a request, repeated while repeating is safe and may help. Returns 0 for a JSON object, 4 when there
# is no such thing, 3 when the name is taken, 2 when a POST may have had its effect; otherwise it ends the script.
api() {
  local try=0
  while :; do
    try=$((try + 1))
    request "$@"
    case $HTTP in
      2??)
        if printf '%s' "$BODY" | jq -e 'type == "object"' >/dev/null 2>&1; then return 0; fi
        ERROR_CODE=bad_gateway ERROR_MESSAGE="the API's answer is not JSON"
        ;;
      429) give_up_as_told ;;
    esac
    case $ERROR_CODE in
      not_found) [ "$1" = POST ] || return 4 ;;
      uniqueness_error) return 3 ;;
    esac
    if [ "$1" = POST ]; then
      case $CURL:$HTTP in
        # Refused before anything was sent.
        5:* | 6:* | 7:* | 35:* | 60:* | 97:*) ;;
        0:[25]?? | 0:408) return 2 ;;
        0:4??) ;;
        *) return 2 ;;
      esac
    fi
    [ "$(exit_of "$ERROR_CODE")" = 10 ] || give_up_as_told
    if [ "$try" -ge "$TRIES_MAX" ] || ! time_left; then give_up_as_told; fi
    say "$1 ${2%%\?*}: $ERROR_CODE: $ERROR_MESSAGE; try $((try + 1)) follows"
    back_off "$try" "$RETRY_CAP_MS"
  done
}

# --- the server -------------------------------------------------------------------------------------------------------

# take_server FILTER: SERVER from the last answer; ends the script when what stands there is no server.
take_server() {
  SERVER=$(printf '%s' "$BODY" | jq -c "$1"' | if type == "object" and (.id | type) == "number" and (.name | type) == "string"
    and ((.labels // {}) | type) == "object" then . else error("no server") end' 2>/dev/null) || {
    SERVER=''
    give_up 10 bad_answer "the API's answer names no server"
  }
}

# find_server: by PROVIDER_ID, else by name. Returns 1 when there is none. An answer that is not a whole list of servers is
# no proof that there is none, and ends the script.
find_server() {
  local count
  SERVER=''
  if [ -n "${PROVIDER_ID:-}" ]; then
    if api GET "/servers/$PROVIDER_ID"; then
      take_server .server
      return 0
    elif [ "$ERROR_CODE" != not_found ]; then
      give_up_as_told
    fi
  fi
  api GET "/servers?name=$INSTANCE_NAME" || give_up 10 bad_answer "GET /servers: $ERROR_CODE"
  # shellcheck disable=SC2016 # jq's own variable
  count=$(field 'if (.servers | type) == "array" then .servers | map(select(.name == $ENV.INSTANCE_NAME)) | length else "none" end')
  case $count in
    0) return 1 ;;
    1) ;;
    *) give_up 10 bad_answer "the API's answer holds no list of servers, or several of this name" ;;
  esac
  # shellcheck disable=SC2016 # jq's own variable
  take_server '.servers | map(select(.name == $ENV.INSTANCE_NAME)) | first'
  # What we were told to look after is gone; another one has taken its name since.
  if [ -n "${PROVIDER_ID:-}" ] && ! is_ours; then
    SERVER=''
    return 1
  fi
}

of_server() { printf '%s' "$SERVER" | jq -r "$1"; }

# age_s: seconds since SERVER was made; 0 when the API does not say.
age_s() {
  # shellcheck disable=SC2016 # jq's own variable
  of_server '(.created // "" | sub("\\.[0-9]+"; "") | sub("\\+00:00$"; "Z")) as $at
    | (try ($at | fromdateiso8601) catch now) | (now - .) | floor'
}

is_ours() { [ -n "$OPERATION" ] && [ "$(of_server '.labels.operation // ""')" = "$OPERATION" ]; }

must_be_ours() {
  if ! is_ours; then
    local id
    id=$(of_server .id)
    EXISTS=no UNSURE=no SERVER=''
    refuse not_ours "server $id of this name does not carry this operation's label"
  fi
}

# failed_action FILTER: true when one of the last answer's actions that FILTER picks has failed; sets ERROR_*.
failed_action() {
  local said
  said=$(field "[.actions[]?] | $1 | "'map(select(.status == "error") | .error // {}) | first // empty
    | (.code // "action_failed" | tostring | gsub("[^A-Za-z0-9_.-]"; "")), (.message // "an action failed" | tostring | gsub("[[:cntrl:]]+"; " "))')
  [ -n "$said" ] || return 1
  ERROR_CODE=${said%%$'\n'*} ERROR_MESSAGE=${said#*$'\n'}
}

# wait_actions ID...: 0 when all succeeded, 1 when one failed (ERROR_*), 2 when time ran out.
wait_actions() {
  local -a left=("$@")
  local query id try=0 said
  while [ "${#left[@]}" -gt 0 ]; do
    query=''
    for id in "${left[@]:0:$ACTIONS_MAX}"; do query="$query&id=$id"; done
    api GET "/actions?${query#&}" || give_up 10 bad_answer "GET /actions: $ERROR_CODE"
    if failed_action '.'; then return 1; fi
    # An action that the answer leaves out is not over.
    # shellcheck disable=SC2016 # jq's own variable
    said=$(printf '%s' "$BODY" | jq -r '($ARGS.positional | map(tonumber)) - [.actions[]? | select(.status == "success") | .id] | .[]' \
      --args "${left[@]}" 2>/dev/null) || give_up 10 bad_answer "the API's answer holds no list of actions"
    left=()
    [ -z "$said" ] || mapfile -t left <<<"$said"
    [ "${#left[@]}" -gt 0 ] || return 0
    time_left || return 2
    try=$((try + 1))
    back_off "$try" 5000
  done
}

# server_actions: the actions of SERVER that still run, in RUNNING; returns 1 when one that belongs to its making has failed
# (ERROR_*). An API that does not tell them leaves the server's own status to go by.
server_actions() {
  RUNNING=()
  request GET "/servers/$(of_server .id)/actions?sort=id:desc&per_page=50"
  [ "$HTTP" != 429 ] || give_up_as_told
  [ "$HTTP" = 200 ] || return 0
  # shellcheck disable=SC2034 # for the scripts that source this
  mapfile -t RUNNING < <(field '.actions[]? | select(.status == "running") | .id | select(type == "number")')
  # The newest of a kind counts; what an operator tried with the server later does not.
  ! failed_action 'map(select(.id? | type == "number")) | map(select(.command | IN("create_server", "start_server", "attach_to_network")))
    | group_by(.command) | map(max_by(.id))'
}

# delete_server: true once the API has no SERVER any more. Only for a server of this operation.
delete_server() {
  local id action
  id=$(of_server .id)
  if [ "$(of_server .status)" != deleting ]; then
    api DELETE "/servers/$id" || return 0
    action=$(field '.action.id? | select(type == "number")')
    if [ -n "$action" ]; then wait_actions "$action" || return 1; fi
  fi
  local try=0
  while api GET "/servers/$id"; do
    take_server .server
    time_left || return 1
    try=$((try + 1))
    [ "$try" -le 4 ] || return 1
    back_off "$try" 2000
  done
}
