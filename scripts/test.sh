#!/usr/bin/env bash
# `make test`: builds everything, then runs every test on servers of this run's own. No service needs to run beforehand.
#
#   scripts/test.sh [NEXTEST-ARGUMENT...]         such as -p voiceai-queue, or part of a test's name
#   scripts/test.sh --long [NEXTEST-ARGUMENT...]  the tests marked #[ignore], with a report under target/long/
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"
cd "$ROOT"

long=no
if [[ ${1:-} == --long ]]; then
  long=yes
  shift
fi
# A developer's change to a manifest may update Cargo.lock; on CI that is an error.
locked=()
if [[ -n ${CI:-} ]]; then locked=(--locked); fi
target=${CARGO_TARGET_DIR:-$ROOT/target}

# part NAME COMMAND...: runs it and says how long it took.
part() {
  local name=$1 began
  shift
  began=$(uptime_ms)
  "$@"
  say "--- $name: $((($(uptime_ms) - began) / 1000)) s"
}

install_all() {
  bash "$ROOT/scripts/install.sh" test
  # Now rather than within a test's time limit.
  ensure_venv
  bash "$ROOT/scripts/stack/tool.sh" all >/dev/null
  # The tests of one crate need none of these, unless it is the one that judges what is shipped.
  if [[ $chosen == no || $arguments == *e2e* ]]; then bash "$ROOT/scripts/test-deploy.sh" --tools; fi
  if [[ $long == yes ]] && ((EUID == 0)); then bash "$ROOT/scripts/install.sh" containers; fi
}

# In one go, so that both are made of the same builds of the dependencies: tests ask them for more features. The
# end-to-end tests start the real binaries.
build() { cargo build --workspace --bins --tests "${locked[@]}"; }

# Everything was built by `build`; with arguments nextest builds what they choose, and the testkit a binary that is asked for.
run_tests() {
  if [[ $chosen == no ]]; then export VOICEAI_TEST_BINARIES=built; fi
  bash "$ROOT/scripts/stack/test-servers.sh" run cargo nextest run "${locked[@]}" "$@"
}

run_long() {
  local report=$target/long code=0
  rm -rf "$report"
  mkdir -p "$report"
  run_tests --profile long --run-ignored only "$@" 2>&1 | tee "$report/report.txt" || code=$?
  cp "$target/nextest/long/junit.xml" "$report/" 2>/dev/null || true
  say "report: $report/report.txt"
  return "$code"
}

chosen=no
arguments=$*
if (($#)); then chosen=yes; fi
part "set-up" install_all
if [[ $chosen == no ]]; then part "build" build; fi
if [[ $long == yes ]]; then
  part "long tests" run_long "$@"
else
  if [[ $chosen == no ]]; then part "documentation tests" cargo test --workspace --doc --quiet "${locked[@]}"; fi
  part "tests" run_tests "$@"
fi
