#!/usr/bin/env bash
# Says which host the server INSTANCE_NAME is. Exit 14 when it is none, 20 when it is another operation's.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

find_host || answer absent 14 not_found "no host has this name"
must_be_ours
answer ready 0
