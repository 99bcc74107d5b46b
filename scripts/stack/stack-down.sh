#!/usr/bin/env bash
# Stops the private stack: exactly the processes that stack-up.sh started, told apart by process id and start time.
# The data stays under .stack/ for the next `make stack`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

RUN=$STATE/run

if [[ ! -d $RUN ]]; then
  say "stack: nothing was started from here"
  exit 0
fi
if [[ ${1:-} != --locked ]]; then
  exec flock --close --timeout 600 "$STATE/stack.lock" bash "$0" --locked
fi

stopped=()
pids=()
failed=0
stop_part() {
  local part=$1 signal=$2 seconds=$3
  if alive "$RUN/$part/$part.pid"; then
    stopped+=("$part")
    pids+=("$(cut -d' ' -f1 "$RUN/$part/$part.pid")")
  fi
  end_process "$RUN/$part/$part.pid" "$signal" "$seconds" || {
    say "error: $part (process $(cut -d' ' -f1 "$RUN/$part/$part.pid")) could not be stopped"
    failed=1
  }
  rm -f "$RUN/$part/vars"
}
stop_part smtp TERM 10
stop_part s3 TERM 20
remove_s3_sockets "$RUN/s3"
# INT is the fast shutdown: connections are cut, nothing is lost.
stop_part postgres INT 60
stop_part redis TERM 30
# An ended process is listed until init has reaped it; somebody who looks afterwards should find nothing.
# shellcheck disable=SC2317  # called by wait_for
all_reaped() {
  local pid
  for pid in "${pids[@]}"; do [[ ! -e /proc/$pid ]] || return 1; done
}
wait_for 5 all_reaped || true
if ((${#stopped[@]})); then say "stack: stopped ${stopped[*]}"; else say "stack: nothing was running"; fi
exit "$failed"
