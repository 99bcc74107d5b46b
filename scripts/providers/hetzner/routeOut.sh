#!/usr/bin/env bash
# Takes the server INSTANCE_NAME out from behind the load balancer: its label goes, its connections may end in peace.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
# shellcheck source-path=SCRIPTDIR source=route.sh
. "$HERE/route.sh"

# shellcheck disable=SC2016 # jq's own variables
set_label 'del(.[$key])'
