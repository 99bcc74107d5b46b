#!/usr/bin/env bash
# Says where the instance INSTANCE_NAME stands. Exit 14 when there is none, 20 when it is another operation's.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

must_name_operation
if ! find_instance; then
  [ "$OTHERS" = 0 ] || not_ours "an instance of this name"
  answer absent 14 not_found "there is no instance of this name"
fi
case $(status_word) in
  failed) answer failed 0 "$(of_instance .State.Name)" "the instance does not run" ;;
  absent) answer absent 14 not_found "the instance is terminated" ;;
  deleting) answer deleting 0 ;;
  ready) answer ready 0 ;;
  *) answer creating 0 ;;
esac
