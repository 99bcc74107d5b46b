#!/usr/bin/env bash
# Gives the host of INSTANCE_NAME back. A server that is not there is success; one of another operation is refused.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

find_host || answer absent 0
must_be_ours
with_host host_stop || answer deleting 10 not_stopped "the host does not stop; see the log"
rm -f -- "$CLAIM"
answer absent 0
