# Registration with load balancers. Sourced by routeIn.sh and routeOut.sh after common.sh.
# shellcheck shell=bash
#
# PROVIDER_CONFIG.targetGroupArns names the target groups, targetPort the port (3001). Where none is named there is nothing to do.

# begin_routing: ends the script when there is nothing to route, or nothing that is ours.
begin_routing() {
  must_name_operation
  if ! find_instance; then
    [ "$OTHERS" = 0 ] || not_ours "an instance of this name"
    answer absent 14 not_found "there is no instance of this name"
  fi
  TARGET="[{\"Id\":\"$(of_instance .InstanceId)\",\"Port\":$TARGET_PORT}]"
  [ "${#TARGET_GROUPS[@]}" -gt 0 ] || answer "$(plain_status)" 0
}

# Without EC2's own checks, which say nothing about routing.
plain_status() {
  case $(of_instance .State.Name) in
    running) echo ready ;;
    shutting-down) echo deleting ;;
    stop*) echo failed ;;
    *) echo creating ;;
  esac
}

# health GROUP: the target's state in the group, `gone` when it is none of its targets.
health() {
  if ! call elbv2 describe-target-health --target-group-arn "$1" --targets "$TARGET"; then
    [ "$ERROR_CODE" = InvalidTarget ] || give_up_as_told
    HEALTH=gone
    return
  fi
  HEALTH=$(printf '%s' "$OUT" | jq -r '[.TargetHealthDescriptions[]?.TargetHealth] | first
    | if . == null or .Reason == "Target.NotRegistered" or .Reason == "Target.DeregistrationInProgress" and .State == "unused" then "gone"
      else (.State // "unknown") end')
}

# wait_health GROUP STATE...: true once the target is in one of the states.
wait_health() {
  local group=$1 try=0
  shift
  while :; do
    health "$group"
    case " $* " in *" $HEALTH "*) return 0 ;; esac
    time_left || return 1
    try=$((try + 1))
    back_off "$try" 5000
  done
}
