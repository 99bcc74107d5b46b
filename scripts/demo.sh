#!/usr/bin/env bash
# `make demo`: builds the services, starts a private stack of this demo's own, plays the story (tests/src/bin/demo) and
# leaves nothing behind, also after Ctrl-C. Exit 0 only when every step of the story was observed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"
cd "$ROOT"

# Beside the stack of `make stack`, which may hold somebody's data.
export VOICEAI_STACK_DIR=$ROOT/.stack/demo-$$
log=$(mktemp)
clean_up() {
  local code=$?
  trap '' INT TERM
  if [[ -d $VOICEAI_STACK_DIR ]]; then
    bash scripts/stack/stack-down.sh 2>>"$log" || { cat "$log" >&2; code=1; }
    rm -rf "$VOICEAI_STACK_DIR"
  fi
  rm -f "$log"
  exit "$code"
}
trap clean_up EXIT
# The story's own process ends what it started; this shell waits for it and then cleans up.
trap 'exit 130' INT
trap 'exit 143' TERM

bash scripts/install.sh build
say "building (some minutes the first time)"
cargo build --workspace --bins
target=${CARGO_TARGET_DIR:-$ROOT/target}
say "starting a private Redis, PostgreSQL, S3 store and SMTP sink"
exports=$(bash scripts/stack/stack-up.sh)
eval "$exports"
"$target/debug/voiceai-demo"
