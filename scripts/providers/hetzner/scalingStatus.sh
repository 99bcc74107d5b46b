#!/usr/bin/env bash
# Says where the server INSTANCE_NAME stands. Exit 14 when there is none, 20 when it is another operation's.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

# A server that is made is switched off for a moment; one that is off for longer than this does not come up by itself.
OFF_MAX_S=600

find_server || answer absent 14 not_found "there is no server of this name"
if [ -n "$OPERATION" ]; then must_be_ours; fi
state=$(of_server .status)
case $state in
  running) answer ready 0 ;;
  deleting) answer deleting 0 ;;
esac
server_actions || answer failed 0 "$ERROR_CODE" "$ERROR_MESSAGE"
if [ "$state" = off ] && [ "${#RUNNING[@]}" -eq 0 ] && [ "$(age_s)" -gt "$OFF_MAX_S" ]; then
  answer failed 0 off "the server is switched off"
fi
answer creating 0
