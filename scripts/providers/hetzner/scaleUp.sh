#!/usr/bin/env bash
# Makes the server INSTANCE_NAME at Hetzner Cloud, or adopts the one that this operation made before.
#
# CANDIDATE: type, location. PROVIDER_CONFIG: image, sshKeys, networks, firewalls, placementGroup, enableIPv4, enableIPv6,
# labels; docs/providers.md explains each. A key of CANDIDATE stands in for the same key of PROVIDER_CONFIG.
# By hand, with HETZNER_API_TOKEN in the environment:
#   OPERATION_ID=try INSTANCE_NAME=dev-voice-01 GROUP_NAME=eu SERVICE=voice ENVIRONMENT=dev LABELS='{"operation":"try"}' \
#     PROVIDER_CONFIG='{"image":"debian-12"}' CANDIDATE='{"type":"cpx31","location":"fsn1"}' CLOUD_INIT_FILE=init.yaml ./scaleUp.sh

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

must_name_operation

# Most bytes of user data that the API takes.
USER_DATA_MAX=32768
USER_DATA=/dev/null
if [ -n "${CLOUD_INIT_FILE:-}" ]; then
  USER_DATA=$CLOUD_INIT_FILE
  if [ ! -f "$USER_DATA" ] || [ ! -r "$USER_DATA" ]; then refuse bad_input "CLOUD_INIT_FILE cannot be read"; fi
  size=$(wc -c <"$USER_DATA")
  [ "$size" -le "$USER_DATA_MAX" ] || refuse user_data_too_large "the cloud-init document has $size bytes; Hetzner Cloud takes $USER_DATA_MAX"
fi

# A server that runs for longer than this is no longer being made: the scaler gives up on one before.
MAKING_MAX_S=900

# The request's body, checked before anything is asked: a wrong key is better named here than by the API.
# shellcheck disable=SC2016 # jq's own variables
REQUEST=$(jq -cn --rawfile user_data "$USER_DATA" --argjson labels "$ALL_LABELS" '
  def bad($name; $what): error("scalingConfig.\($name) is not \($what)");
  def word($name): if type == "string" and test("^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$") then . else bad($name; "a name of letters, digits, `.`, `_`, `-`") end;
  def id($name): if type == "number" and . == floor and . > 0 then . elif type == "string" and test("^[0-9]{1,15}$") then tonumber else bad($name; "a numeric id") end;
  def list($name; f): if type == "array" then map(f) else bad($name; "a list") end;
  def flag($name): if type == "boolean" then . else bad($name; "true or false") end;
  # Names may hold spaces and more; they travel as JSON.
  def key($name): if type == "number" or (type == "string" and length > 0 and (test("[[:cntrl:]]") | not)) then . else bad($name; "a list of names or ids") end;
  def first_of($names): . as $all | reduce $names[] as $name (null; if . == null then $all[$name] else . end);
  try (
    (($ENV.PROVIDER_CONFIG // "") | if . == "" then {} else fromjson end) as $config
    | (($ENV.CANDIDATE // "") | if . == "" then {} else fromjson end) as $candidate
    | ($config + $candidate) as $all
    | { name: $ENV.INSTANCE_NAME,
        server_type: (($candidate.type // ($all | first_of(["machineType", "serverType", "server_type", "type"])))
          | if . == null then error("no machine type: set `candidates` or `machineType` in scalingConfig") else word("machineType") end),
        image: ($all.image // "debian-12" | if type == "number" then id("image") | tostring else word("image") end),
        labels: $labels,
        start_after_create: true,
        public_net: {
          enable_ipv4: ($all | first_of(["enableIPv4", "enable_ipv4"]) | if . == null then true else flag("enableIPv4") end),
          enable_ipv6: ($all | first_of(["enableIPv6", "enable_ipv6"]) | if . == null then true else flag("enableIPv6") end) } }
    + (($candidate.location // ($all | first_of(["location", "region"]))) | if . == null or . == "" then {} else {location: word("location")} end)
    + ($all | first_of(["sshKeys", "ssh_keys"]) | if . == null then {} else {ssh_keys: list("sshKeys"; key("sshKeys"))} end)
    + ($all.networks | if . == null then {} else {networks: list("networks"; id("networks"))} end)
    + ($all.firewalls | if . == null then {} else {firewalls: list("firewalls"; {firewall: id("firewalls")})} end)
    + ($all | first_of(["placementGroup", "placement_group"]) | if . == null then {} else {placement_group: id("placementGroup")} end)
    + (if $user_data == "" then {} else {user_data: $user_data} end)
  ) catch {bad: .}') || refuse bad_input "CLOUD_INIT_FILE or PROVIDER_CONFIG cannot be read"
problem=$(printf '%s' "$REQUEST" | jq -r '.bad? // empty')
[ -z "$problem" ] || refuse bad_input "$problem"

# Takes the server over: from here on it exists, whatever else is said.
adopt() {
  must_be_ours
  [ "$(of_server .status)" != deleting ] || answer deleting 10 being_deleted "the server of this operation is being deleted"
  EXISTS=yes
  # What was asked for in the call that is being repeated may still be at work, or have failed.
  # One that has long been running may carry calls, whatever became of its making: it is not for this script to end it.
  if ! server_actions && { [ "$(of_server .status)" != running ] || [ "$(age_s)" -le "$MAKING_MAX_S" ]; }; then half_created; fi
}

# An action failed, so the server will never be what was asked for: it goes, and the answer is the action's.
half_created() {
  local code=$ERROR_CODE message=$ERROR_MESSAGE exit_code
  say "$code: $message; the half-made server is deleted"
  # Should the deletion not be possible now, the scaler is told of a server that failed, which it deletes itself.
  if (EXISTS=no && delete_server) >/dev/null; then
    EXISTS=no SERVER=''
    exit_code=$(exit_of "$code")
    case $exit_code in 11 | 12) ;; *) exit_code=10 ;; esac
    give_up "$exit_code" "$code" "$message"
  fi
  answer failed 0 "$code" "$message"
}

# Ended by an answer that may hide a creation: the name tells.
look_for_it() {
  local code=$ERROR_CODE message=$ERROR_MESSAGE try
  UNSURE=yes
  for try in 1 2 3 4 5; do
    if find_server; then return 0; fi
    [ "$try" = 5 ] || back_off "$try" 5000
  done
  give_up 10 "$code" "$message"
}

if find_server; then
  adopt
else
  # The project's tools share one limit: what is left of it is kept for deletions and for looking.
  if [ -n "$RATE_LIMIT" ] && [ -n "$RATE_LEFT" ] && [ "$((RATE_LEFT * 10))" -lt "$RATE_LIMIT" ]; then
    # It fills up evenly, to the brim within an hour.
    rest=$(((RATE_LIMIT / 10 - RATE_LEFT + 1) * 3600 / RATE_LIMIT + 1))
    if [ -n "$RATE_RESET" ] && [ "$(rate_rest)" -lt "$rest" ]; then rest=$(rate_rest); fi
    give_up 13 rate_limit_low "only $RATE_LEFT of $RATE_LIMIT requests are left; they are kept for deletions" "$rest"
  fi
  status=0
  api POST /servers "$REQUEST" || status=$?
  case $status in
    0)
      made=$BODY
      SERVER=$(printf '%s' "$made" | jq -c '.server | select((.id | type) == "number" and (.name | type) == "string")' 2>/dev/null) || SERVER=''
      if [ -n "$SERVER" ]; then
        EXISTS=yes
        mapfile -t RUNNING < <(printf '%s' "$made" | jq -r '[.action?, .next_actions[]?] | .[] | .id? | select(type == "number")')
      else
        ERROR_CODE=bad_answer ERROR_MESSAGE="the API's answer names no server"
        look_for_it
        adopt
      fi
      ;;
    3)
      # Made between our look and our request, by this operation or by somebody else.
      find_server || give_up 10 conflict "the name was taken, and is free again"
      adopt
      ;;
    *)
      say "POST /servers: $ERROR_CODE: $ERROR_MESSAGE; looking for the server by its name"
      look_for_it
      adopt
      ;;
  esac
fi

status=0
if [ "${#RUNNING[@]}" -gt 0 ]; then wait_actions "${RUNNING[@]}" || status=$?; fi
case $status in
  1) half_created ;;
  2) answer creating 0 ;;
esac
PROVIDER_ID=$(of_server .id)
api GET "/servers/$PROVIDER_ID" || {
  EXISTS=no SERVER=''
  give_up 10 vanished "the server was deleted while it was made"
}
take_server .server
if [ "$(of_server .status)" = running ]; then answer ready 0; fi
answer creating 0
