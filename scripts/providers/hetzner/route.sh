# The way into the load balancer and out of it. Sourced by routeIn.sh and routeOut.sh after common.sh.
# shellcheck shell=bash
#
# The load balancer takes the servers that carry a label, `in-service=true` unless PROVIDER_CONFIG.loadBalancerLabel names
# another. The API replaces a server's labels as a whole, so all of them are read, and written back with the change.

# set_label FILTER: the server's labels, changed by a jq filter that knows $key and $value.
set_label() {
  local wanted try
  must_name_operation
  for try in 1 2 3 4; do
    find_server || answer absent 14 not_found "there is no server of this name"
    must_be_ours
    # Calls find their way to a voice server by Kamailio.
    if [ "${SERVICE:-}" = voice ] && [ "$BALANCER_NAMED" != true ]; then answer "$(status_word)" 0; fi
    wanted=$(printf '%s' "$SERVER" | jq -cS --arg key "$BALANCER_KEY" --arg value "$BALANCER_VALUE" ".labels // {} | $1")
    # Read back: another tool may have written its own labels in between, over ours.
    if [ "$wanted" = "$(of_server '.labels // {} | tojson' | jq -cS .)" ]; then answer "$(status_word)" 0; fi
    [ "$try" -lt 4 ] || break
    api PUT "/servers/$(of_server .id)" "{\"labels\":$wanted}" || answer absent 14 not_found "the server was deleted meanwhile"
  done
  give_up 10 conflict "the server's labels are changed by something else at the same time"
}

status_word() {
  case $(of_server .status) in
    running) echo ready ;;
    deleting) echo deleting ;;
    *) echo creating ;;
  esac
}
