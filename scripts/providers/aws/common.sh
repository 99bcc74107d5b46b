# What the scripts of the provider `aws` share. Sourced, never run.
# shellcheck shell=bash
#
# A server is an EC2 instance with the tag Name=INSTANCE_NAME and LABELS as tags. Names are not unique there, so every look goes
# by name and tells ours from others' by the tag `operation`; a creation carries a client token made of operation and candidate.
# Credentials are the AWS command line's own affair: environment, instance profile, container.

INSTANCE='' # the instance, as the API's JSON; empty: none is known
OUT='' ERROR_CODE='' ERROR_MESSAGE=''
# What the API does not name: after this a throttled caller is let in again as a rule.
THROTTLE_REST_S=15

# shellcheck disable=SC2034 # for cloud.sh
MADE=INSTANCE THING=instance MASKED=AWS_SECRET_ACCESS_KEY
# shellcheck disable=SC2034 # for cloud.sh
FIELDS='{ id: (.InstanceId? | text), ip: (.PublicIpAddress? | text), private_ip: (.PrivateIpAddress? | text),
  type: (.InstanceType? | text), location: (.Placement?.AvailabilityZone? | text) }'
# shellcheck source-path=SCRIPTDIR source=../cloud.sh
. "$HERE/../cloud.sh"
need aws jq
check_name
if [ -n "${PROVIDER_ID:-}" ] && ! [[ $PROVIDER_ID =~ ^i-[0-9a-f]{8,32}$ ]]; then
  refuse bad_input "PROVIDER_ID is no id of an EC2 instance"
fi

# Everything from the JSON of the environment in one go, a value a line; the first tells what is wrong with it.
mapfile -t SET < <(jq -rn '
  # In an array, so that jq 1.6 does not take later errors for those of this `try`.
  def object($name; $text): ($text // "") | (if . == "" then {} else [try fromjson catch null][0] end)
    | if type == "object" then . else error($name + " is not a JSON object") end;
  def whole($low; $high; $name): if type == "number" and . == floor and . >= $low and . <= $high then .
    else error("scalingConfig.\($name) is not a whole number from \($low) to \($high)") end;
  def tag_ok: (.key | length >= 1 and length <= 128 and (test("^aws:|[[:cntrl:]]") | not))
    and (.value | type == "string" and length <= 256 and (test("[[:cntrl:]]") | not));
  try (
    object("LABELS"; $ENV.LABELS) as $labels
    | object("PROVIDER_CONFIG"; $ENV.PROVIDER_CONFIG) as $config
    | object("CANDIDATE"; $ENV.CANDIDATE) as $candidate
    | ($config.tags // {} | if type == "object" then . else error("scalingConfig.tags is not an object") end) as $more
    # Ours come last: the group may add tags, it may not change whose instance it is.
    | ($more + $labels + {Name: $ENV.INSTANCE_NAME}) as $tags
    | ($tags | to_entries[] | select(tag_ok | not) | .key | error("the tag \(.) is none: at most 128 and 256 characters, no control characters, not aws:")),
    # Status and removal are asked with any candidate, so the region must not depend on it: a group lives in one region.
    ($config.region // $ENV.AWS_REGION // $ENV.AWS_DEFAULT_REGION // ""
       | if type == "string" and test("^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$") then . else error("no region: set scalingConfig.region or AWS_REGION") end) as $region
    | ($candidate.location // "" | if . == "" or . == $region or (startswith($region) and test("^[a-z0-9-]{1,40}$")) then .
        else error("the location \(.) is no zone of the region \($region); a group lives in one region") end) as $location
    | ($config.targetGroupArns // $config.targetGroupArn // [] | if type == "string" then [.] else . end
        | if type == "array" and all(.[]; type == "string" and test("^arn:[A-Za-z0-9:/._-]{1,300}$")) then .
          else error("scalingConfig.targetGroupArns is not a list of ARNs") end) as $groups
    # Gathered first: an error in the last of them must not come after the word that all is well.
    | ["ok", ($labels.operation // ""), ($tags | to_entries | map({Key: .key, Value: .value}) | tojson), $region,
      (if $location == $region then "" else $location end), ($groups | join(" ")),
      ($config.targetPort // 3001 | whole(1; 65535; "targetPort") | tostring),
      (($config.waitSeconds // 120 | whole(0; 3000; "waitSeconds")) * 1000 | tostring),
      ($config.pollMs // 2000 | whole(10; 60000; "pollMs") | tostring)] | .[]
  ) catch "bad: \(.)"' 2>/dev/null)
case ${SET[0]:-} in
  ok) ;;
  bad:*) refuse bad_input "${SET[0]#bad: }" ;;
  *) refuse bad_input "LABELS, PROVIDER_CONFIG and CANDIDATE must be JSON objects" ;;
esac
OPERATION=${SET[1]}
REGION=${SET[3]}
# shellcheck disable=SC2034 # for the scripts that source this
{
  TAGS=${SET[2]} ZONE=${SET[4]} TARGET_PORT=${SET[6]}
  read -ra TARGET_GROUPS <<<"${SET[5]}"
}
WAIT_MS=${SET[7]} POLL_MS=${SET[8]}

GLOBAL=(--region "$REGION" --output json --cli-connect-timeout 10 --cli-read-timeout 60)
if [ -n "${AWS_ENDPOINT_URL:-}" ]; then
  [[ $AWS_ENDPOINT_URL =~ ^https?://[][A-Za-z0-9._~%:-]+(/[A-Za-z0-9._~%/-]*)?$ ]] ||
    refuse bad_input "AWS_ENDPOINT_URL is not a URL with http or https, without user and query"
  # By argument, because an older command line does not know the variable.
  GLOBAL+=(--endpoint-url "$AWS_ENDPOINT_URL")
fi
export AWS_PAGER='' AWS_CLI_AUTO_PROMPT=off AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=3

SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/voiceai-aws.XXXXXX")
trap 'rm -rf -- "$SCRATCH"' EXIT

# shellcheck source-path=SCRIPTDIR source=../timing.sh
. "$HERE/../timing.sh"

# --- calls ------------------------------------------------------------------------------------------------------------

# call SERVICE OPERATION [ARGUMENT...]: the AWS command line; sets OUT, or ERROR_CODE and ERROR_MESSAGE. It repeats by itself
# what may be repeated.
call() {
  local told
  ERROR_CODE='' ERROR_MESSAGE=''
  if OUT=$(aws "${GLOBAL[@]}" "$@" </dev/null 2>"$SCRATCH/stderr"); then
    # Some calls answer nothing.
    [ -n "$OUT" ] || OUT='{}'
    if printf '%s' "$OUT" | jq -e 'type == "object"' >/dev/null 2>&1; then return 0; fi
    ERROR_CODE=bad_answer ERROR_MESSAGE="the answer to $2 is not JSON"
    return 1
  fi
  told=$(tr -s '[:space:][:cntrl:]' ' ' <"$SCRATCH/stderr" | head -c 2000)
  say "$2:$told"
  ERROR_MESSAGE=$told
  if [[ $told =~ An\ error\ occurred\ \(([A-Za-z0-9._-]+)\)[^:]*:\ ?(.*) ]]; then
    ERROR_CODE=${BASH_REMATCH[1]} ERROR_MESSAGE=${BASH_REMATCH[2]}
    return 1
  fi
  case $told in
    *'locate credentials'* | *'Partial credentials'* | *'Error when retrieving'* | *'could not be found'*) ERROR_CODE=no_credentials ;;
    # Nothing was sent.
    *'Could not connect'* | *'onnect timeout'* | *'resolve host'* | *'Failed to connect to proxy'*) ERROR_CODE=unreachable ;;
    *'Unknown options'* | *'arameter validation failed'* | *'usage: aws'*) ERROR_CODE=bad_call ;;
    *) ERROR_CODE=no_answer ;;
  esac
  return 1
}

# exit_of CODE: the agreed exit of an error of the API.
exit_of() {
  case ${1#Server.} in
    RequestLimitExceeded | Throttling | ThrottlingException | ThrottledException | RequestThrottled* | EC2ThrottledException | \
      TooManyRequestsException | SlowDown | BandwidthLimitExceeded | PriorRequestNotComplete) echo 13 ;;
    # Another type or zone may help.
    Insufficient*Capacity | InsufficientFreeAddressesInSubnet | Unsupported | SpotMaxPriceTooLow) echo 11 ;;
    *LimitExceeded | MaxSpotInstanceCountExceeded | TooManyTargets | TooManyRegistrationsForTargetId | PendingVerification) echo 12 ;;
    InternalError | InternalFailure | ServiceUnavailable* | Unavailable | RequestTimeout* | RequestExpired | IncorrectInstanceState | \
      IncorrectState | InvalidTarget | IdempotentParameterMismatch | ResourceInUse | 5?? | unreachable | no_answer | bad_answer) echo 10 ;;
    *) echo 20 ;;
  esac
}

# may_have_worked CODE: the call's effect is not known.
may_have_worked() {
  case $1 in
    InternalError | InternalFailure | ServiceUnavailable* | Unavailable | RequestTimeout* | 5?? | no_answer | bad_answer) true ;;
    *) false ;;
  esac
}

give_up_as_told() {
  local code
  code=$(exit_of "$ERROR_CODE")
  if [ "$code" = 13 ]; then
    give_up 13 "$ERROR_CODE" "$ERROR_MESSAGE" "$THROTTLE_REST_S"
  fi
  give_up "$code" "$ERROR_CODE" "$ERROR_MESSAGE"
}

# --- the instance -----------------------------------------------------------------------------------------------------

# found FILTER: the instances of the last answer that FILTER picks, oldest first. Ends the script when the answer is no list
# of reservations: such a one is no proof that there is none.
found() {
  printf '%s' "$OUT" | jq -c --arg operation "$OPERATION" '
    def tag($key): [.Tags[]? | select(.Key == $key) | .Value] | first;
    def alive: (.State.Name // "") | IN("pending", "running", "stopping", "stopped", "shutting-down");
    if (.Reservations | type) != "array" then error("no list") else . end
    | [.Reservations[].Instances[] | select((.InstanceId | type) == "string" and alive)]
    | sort_by(.LaunchTime // "", .InstanceId) | '"$1" 2>/dev/null
}

# find_instance: sets INSTANCE to ours, EXTRA to further ones of this operation (a client token that was not honoured), OTHERS
# to how many live under the name that are not ours. Returns 1 when none is ours.
# shellcheck disable=SC2016,SC2034 # jq's own variables; for the scripts that source this
find_instance() {
  local ours
  INSTANCE='' EXTRA=() OTHERS=0
  call ec2 describe-instances --filters "[{\"Name\":\"tag:Name\",\"Values\":[\"$INSTANCE_NAME\"]}]" || give_up_as_told
  ours=$(found 'map(select($operation != "" and tag("operation") == $operation))') || give_up 10 bad_answer "the answer holds no list of instances"
  OTHERS=$(found 'map(select(($operation == "" or tag("operation") != $operation) and .State.Name != "shutting-down")) | length') ||
    give_up 10 bad_answer "the answer holds no list of instances"
  if [ "$ours" = '[]' ] && [ -n "${PROVIDER_ID:-}" ]; then
    # Its name may have been changed by hand.
    if call ec2 describe-instances --instance-ids "$PROVIDER_ID"; then
      ours=$(found 'map(select(tag("operation") == $operation))') || give_up 10 bad_answer "the answer holds no list of instances"
      if [ "$ours" = '[]' ] && [ "$(found length)" != 0 ]; then not_ours "$PROVIDER_ID"; fi
      # What we were told to look after is gone; another one has taken its name since.
      OTHERS=0
    elif [ "$ERROR_CODE" = InvalidInstanceID.NotFound ]; then
      OTHERS=0
    else
      give_up_as_told
    fi
  fi
  [ "$ours" != '[]' ] || return 1
  # One that is going is ours only when no other one is.
  INSTANCE=$(printf '%s' "$ours" | jq -c 'sort_by(.State.Name == "shutting-down") | first')
  # shellcheck disable=SC2034 # for the scripts that source this
  mapfile -t EXTRA < <(printf '%s' "$ours" | jq -r 'map(select(.State.Name != "shutting-down")) | .[1:][] | .InstanceId')
}

of_instance() { printf '%s' "$INSTANCE" | jq -r "$1"; }

not_ours() {
  EXISTS=no UNSURE=no INSTANCE=''
  refuse not_ours "$1 does not carry this operation's tag"
}

# look_again: the same instance as it is now. Returns 1 when it is gone; INSTANCE then tells why.
look_again() {
  local id
  id=$(of_instance .InstanceId)
  if ! call ec2 describe-instances --instance-ids "$id"; then
    # Right after its making an instance may not be known everywhere yet.
    [ "$ERROR_CODE" = InvalidInstanceID.NotFound ] || give_up_as_told
    return 0
  fi
  local now
  now=$(printf '%s' "$OUT" | jq -ce '[.Reservations[].Instances[]] | first | select(.InstanceId)' 2>/dev/null) ||
    give_up 10 bad_answer "the answer holds no instance"
  INSTANCE=$now
  [ "$(of_instance .State.Name)" != terminated ]
}

# status_word: where INSTANCE stands; ready only when both of EC2's own checks have passed.
status_word() {
  case $(of_instance .State.Name) in
    pending) echo creating ;;
    running)
      if call ec2 describe-instance-status --instance-ids "$(of_instance .InstanceId)" && printf '%s' "$OUT" | jq -e '
        [.InstanceStatuses[]? | select(.InstanceStatus.Status == "ok" and .SystemStatus.Status == "ok")] | length == 1' >/dev/null; then
        echo ready
      else
        echo creating
      fi
      ;;
    shutting-down) echo deleting ;;
    terminated) echo absent ;;
    *) echo failed ;;
  esac
}
