#!/usr/bin/env bash
# Deletes the server INSTANCE_NAME. A server that is not there is success; one of another operation is refused.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

must_name_operation
find_server || answer absent 0
must_be_ours
if delete_server; then answer absent 0; fi
answer deleting 0
