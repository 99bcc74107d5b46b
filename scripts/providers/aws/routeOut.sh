#!/usr/bin/env bash
# Takes the instance INSTANCE_NAME out of its target groups and waits until its connections have ended (the group's
# deregistration delay bounds that). Exit 10 while they have not: calling again goes on waiting.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
# shellcheck source-path=SCRIPTDIR source=route.sh
. "$HERE/route.sh"

begin_routing
for group in "${TARGET_GROUPS[@]}"; do
  call elbv2 deregister-targets --target-group-arn "$group" --targets "$TARGET" || {
    [ "$ERROR_CODE" = InvalidTarget ] || give_up_as_told
  }
done
for group in "${TARGET_GROUPS[@]}"; do
  wait_health "$group" gone unused || give_up 10 draining "connections to the instance are still open" 15
done
answer "$(plain_status)" 0
