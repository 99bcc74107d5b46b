# How long the scripts of the providers `hetzner` and `aws` wait. Sourced by their common.sh, once WAIT_MS and POLL_MS are known.
# shellcheck shell=bash

# Milliseconds since the machine started: no change of the clock stretches a wait.
uptime_ms() {
  local up
  read -r up _ </proc/uptime
  up=${up/./}
  printf '%s' "$((10#$up * 10))"
}

DEADLINE=$(($(uptime_ms) + WAIT_MS))

time_left() { [ "$(uptime_ms)" -lt "$DEADLINE" ]; }

# back_off TRY CAP_MS: waits longer with each try, with jitter, so that many scripts do not come back in step.
back_off() {
  local ms=$POLL_MS try=$1
  while [ "$try" -gt 1 ] && [ "$ms" -lt "$2" ]; do
    ms=$((ms * 2)) try=$((try - 1))
  done
  [ "$ms" -le "$2" ] || ms=$2
  ms=$((ms / 2 + RANDOM % (ms / 2 + 1)))
  sleep "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
}
