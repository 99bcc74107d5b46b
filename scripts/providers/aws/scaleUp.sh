#!/usr/bin/env bash
# Makes the EC2 instance INSTANCE_NAME, or adopts the one that this operation made before.
#
# CANDIDATE: type, location (a zone of the region, or the region itself). PROVIDER_CONFIG: region, imageId, subnetId or
# subnets, securityGroupIds, keyName, iamInstanceProfile, associatePublicIp, tags; docs/providers.md explains each. A key of
# CANDIDATE stands in for the same key of PROVIDER_CONFIG.
# By hand, with credentials as the AWS command line finds them:
#   OPERATION_ID=try INSTANCE_NAME=dev-api-01 GROUP_NAME=eu SERVICE=api ENVIRONMENT=dev LABELS='{"operation":"try"}' \
#     PROVIDER_CONFIG='{"region":"eu-central-1","imageId":"ami-…"}' CANDIDATE='{"type":"t3.medium"}' ./scaleUp.sh

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

must_name_operation

# Most bytes of user data that EC2 takes, before they are encoded.
USER_DATA_MAX=16384
USER_DATA=()
if [ -n "${CLOUD_INIT_FILE:-}" ]; then
  if [ ! -f "$CLOUD_INIT_FILE" ] || [ ! -r "$CLOUD_INIT_FILE" ]; then refuse bad_input "CLOUD_INIT_FILE cannot be read"; fi
  size=$(wc -c <"$CLOUD_INIT_FILE")
  [ "$size" -le "$USER_DATA_MAX" ] || refuse user_data_too_large "the cloud-init document has $size bytes; EC2 takes $USER_DATA_MAX"
  USER_DATA=(--user-data "fileb://$CLOUD_INIT_FILE")
fi

# The same operation and candidate: the same instance. Another candidate is another request, which EC2 would refuse to take
# under the same token.
TOKEN=$OPERATION
[ "${#TOKEN}" -le 48 ] || TOKEN=$(printf '%s' "$TOKEN" | sha256sum | cut -c 1-48)
TOKEN=$TOKEN-$(printf '%s' "${CANDIDATE:-}" | { jq -cS . 2>/dev/null || true; } | sha256sum | cut -c 1-12)

# shellcheck disable=SC2016 # jq's own variables
REQUEST=$(jq -cn --argjson tags "$TAGS" --arg token "$TOKEN" --arg zone "$ZONE" '
  def bad($name; $what): error("scalingConfig.\($name) is not \($what)");
  def word($name; $pattern): if type == "string" and test($pattern) then . else bad($name; "what it should be: \(tojson)") end;
  try (
    (($ENV.PROVIDER_CONFIG // "") | if . == "" then {} else fromjson end) as $config
    | (($ENV.CANDIDATE // "") | if . == "" then {} else fromjson end) as $candidate
    | ($config + $candidate) as $all
    | ($all.subnetId // (if ($config.subnets | type) == "object" then $config.subnets[$zone] else null end)
        | if . == null then null else word("subnetId"; "^subnet-[0-9a-f]{8,32}$") end) as $subnet
    | ($all.securityGroupIds // [] | if type == "array" then map(word("securityGroupIds"; "^sg-[0-9a-f]{8,32}$")) else bad("securityGroupIds"; "a list") end) as $groups
    | ($all.associatePublicIp | if . == null or type == "boolean" then . else bad("associatePublicIp"; "true or false") end) as $public
    | { MinCount: 1, MaxCount: 1, ClientToken: $token,
        ImageId: ($all.imageId // $all.ami // $all.image | if . == null then error("no image: set scalingConfig.imageId to an AMI") else word("imageId"; "^(ami-[0-9a-f]{8,32}|resolve:ssm:[A-Za-z0-9/._:-]{1,200})$") end),
        InstanceType: ($candidate.type // $all.machineType // $all.serverType // $all.type
          | if . == null then error("no machine type: set `candidates` or `machineType` in scalingConfig") else word("machineType"; "^[a-z0-9][a-z0-9.-]{1,40}$") end),
        MetadataOptions: {HttpTokens: "required", HttpPutResponseHopLimit: 2, HttpEndpoint: "enabled"},
        TagSpecifications: [{ResourceType: "instance", Tags: $tags}, {ResourceType: "volume", Tags: $tags}] }
    + (if $zone == "" then {} else {Placement: {AvailabilityZone: $zone}} end)
    + ($all.keyName | if . == null then {} else {KeyName: word("keyName"; "^[^[:cntrl:]]{1,255}$")} end)
    + ($all.iamInstanceProfile | if . == null then {} else word("iamInstanceProfile"; "^[A-Za-z0-9:/+=,.@_-]{1,300}$")
        | {IamInstanceProfile: (if startswith("arn:") then {Arn: .} else {Name: .} end)} end)
    # A wish for a public address, or for none, is the property of an interface; subnet and groups then stand there too.
    + (if $public != null then
         {NetworkInterfaces: [{DeviceIndex: 0, AssociatePublicIpAddress: $public}
           + (if $subnet then {SubnetId: $subnet} else {} end) + (if $groups != [] then {Groups: $groups} else {} end)]}
       else (if $subnet then {SubnetId: $subnet} else {} end) + (if $groups != [] then {SecurityGroupIds: $groups} else {} end) end)
  ) catch {bad: .}') || refuse bad_input "PROVIDER_CONFIG or CANDIDATE cannot be read"
problem=$(printf '%s' "$REQUEST" | jq -r '.bad? // empty')
[ -z "$problem" ] || refuse bad_input "$problem"

# Takes the instance over: from here on it exists, whatever else is said.
adopt() {
  case $(of_instance .State.Name) in
    shutting-down) EXISTS=no UNSURE=no answer deleting 10 being_deleted "the instance of this operation is being terminated" ;;
  esac
  EXISTS=yes
  if [ "${#EXTRA[@]}" -gt 0 ]; then
    say "more than one instance of this operation; the later ones are terminated: ${EXTRA[*]}"
    call ec2 terminate-instances --instance-ids "${EXTRA[@]}" || give_up_as_told
  fi
}

# Ended by an answer that may hide a creation: the tags tell.
look_for_it() {
  local code=$ERROR_CODE message=$ERROR_MESSAGE try
  UNSURE=yes
  for try in 1 2 3 4; do
    if find_instance; then return 0; fi
    [ "$try" = 4 ] || back_off "$try" 5000
  done
  give_up 10 "$code" "$message"
}

create() {
  local round token=$TOKEN
  for round in 2 3 4; do
    if call ec2 run-instances --cli-input-json "$REQUEST" "${USER_DATA[@]}"; then
      INSTANCE=$(printf '%s' "$OUT" | jq -ce '.Instances[0] | select((.InstanceId | type) == "string")' 2>/dev/null) || INSTANCE=''
      if [ -n "$INSTANCE" ]; then
        EXISTS=yes
        return 0
      fi
      ERROR_CODE=bad_answer ERROR_MESSAGE="the answer to run-instances names no instance"
    fi
    # This operation's instance was made and terminated: the token is used up, a new one cannot buy twice.
    if [ "$ERROR_CODE" = IdempotentInstanceTerminated ]; then
      REQUEST=$(printf '%s' "$REQUEST" | jq -c --arg token "$token-$round" '.ClientToken = $token')
      continue
    fi
    if [ "$ERROR_CODE" = IdempotentParameterMismatch ] || may_have_worked "$ERROR_CODE"; then
      look_for_it
      adopt
      return 0
    fi
    give_up_as_told
  done
  give_up_as_told
}

EXTRA=()
if find_instance; then
  adopt
elif [ "$OTHERS" != 0 ]; then
  not_ours "an instance of this name"
else
  create
fi

# EC2 takes a request before it knows whether there is room: an instance that cannot be had goes from pending to terminated.
try=0
while [ "$(of_instance .State.Name)" = pending ]; do
  time_left || answer creating 0
  try=$((try + 1))
  back_off "$try" 5000
  look_again || break
done
if [ "$(of_instance .State.Name)" = terminated ]; then
  code=$(of_instance '.StateReason.Code // "terminated"')
  message=$(of_instance '.StateReason.Message // "the instance was terminated while it was made"')
  EXISTS=no INSTANCE=''
  exit_code=$(exit_of "$code")
  case $exit_code in 11 | 12) ;; *) exit_code=10 ;; esac
  give_up "$exit_code" "$code" "$message"
fi
case $(status_word) in
  ready) answer ready 0 ;;
  failed) answer failed 0 "$(of_instance .State.Name)" "the instance does not run" ;;
  *) answer creating 0 ;;
esac
