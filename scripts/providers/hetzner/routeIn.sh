#!/usr/bin/env bash
# Puts the server INSTANCE_NAME behind the load balancer, by its label. Exit 14 when there is no such server.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
# shellcheck source-path=SCRIPTDIR source=route.sh
. "$HERE/route.sh"

# shellcheck disable=SC2016 # jq's own variables
set_label '. + {($key): $value}'
