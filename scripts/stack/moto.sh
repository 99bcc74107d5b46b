#!/usr/bin/env bash
# Prints the path of moto_server, a server that stands in for SSM and Secrets Manager in tests; installs it first where it is
# missing. In an environment of its own: servers run from the other one while it is made.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

MOTO_VERSION=5.2.5
want="moto[server]==$MOTO_VERSION"
home=$ROOT/.stack/moto
log=$ROOT/.stack/moto.log

mkdir -p "$ROOT/.stack"
# Two tests at once must not both build it.
exec {lock}>"$ROOT/.stack/moto.lock"
flock "$lock"
if [[ ! -x $home/bin/moto_server || $(cat "$home/tools" 2>/dev/null) != "$want" ]]; then
  say "installing $want into ${home#"$ROOT"/}"
  for python in python3 /usr/bin/python3; do
    rm -rf "$home"
    if "$python" -m venv "$home" >"$log" 2>&1; then break; fi
  done
  [[ -x $home/bin/pip ]] || fail_part "the Python environment" "could not be made (package python3-venv)" "$log"
  "$home/bin/pip" install --quiet --disable-pip-version-check "$want" >>"$log" 2>&1 ||
    fail_part "the Python environment" "could not install $want" "$log"
  printf '%s\n' "$want" >"$home/tools"
fi
printf '%s\n' "$home/bin/moto_server"
