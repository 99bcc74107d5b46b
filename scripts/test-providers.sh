#!/usr/bin/env bash
# Tests the provider scripts: Hetzner's against a double of its API, which the official Python client checks; AWS's against a
# stand-in for the command line, and with the real one against moto. No account and no network beyond this machine is used.
#
#   scripts/test-providers.sh                 every suite
#   scripts/test-providers.sh SUITE...        hetzner, aws, moto, custom, or one part such as test_hetzner.Creating
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"

suites=("$@")
((${#suites[@]})) || suites=(hetzner aws moto custom)
parts=()
for suite in "${suites[@]}"; do
  case $suite in
    hetzner)
      # Each class on its own: they wait for timers more than they compute.
      for class in Creating Refusals Hostile Looking Deleting Listing Routing; do parts+=("test_hetzner.$class"); done
      parts+=(test_conformance)
      ;;
    aws) parts+=(test_aws.StandIn) ;;
    moto) parts+=(test_aws.Moto) ;;
    custom) parts+=(test_custom) ;;
    test_*) parts+=("$suite") ;;
    *)
      sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
done

PYTHON=$(bash "$ROOT/scripts/stack/tool.sh" providers)
case " ${suites[*]} " in
  *' moto '*)
    MOTO_SERVER=$(bash "$ROOT/scripts/stack/tool.sh" moto)
    AWS_CLI_FOLDER=$(dirname "$PYTHON")
    export MOTO_SERVER AWS_CLI_FOLDER
    ;;
esac

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
cd "$ROOT/tests/providers"
declare -A running=()
for part in "${parts[@]}"; do
  "$PYTHON" -B -m unittest "$part" >"$reports/$part" 2>&1 &
  running[$part]=$!
done
failed=0
for part in "${parts[@]}"; do
  if wait "${running[$part]}"; then
    say "$part: $(grep '^Ran ' "$reports/$part")"
  else
    failed=1
    say "--- $part failed"
    cat "$reports/$part" >&2
  fi
done
exit "$failed"
