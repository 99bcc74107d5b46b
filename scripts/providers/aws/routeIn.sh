#!/usr/bin/env bash
# Registers the instance INSTANCE_NAME with its target groups and waits until they find it healthy.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
# shellcheck source-path=SCRIPTDIR source=route.sh
. "$HERE/route.sh"

begin_routing
for group in "${TARGET_GROUPS[@]}"; do
  call elbv2 register-targets --target-group-arn "$group" --targets "$TARGET" || give_up_as_told
done
for group in "${TARGET_GROUPS[@]}"; do
  # A group that no load balancer uses checks nobody's health.
  wait_health "$group" healthy unused || give_up 10 not_healthy "the target group finds the instance $HEALTH" 5
done
answer "$(plain_status)" 0
