#!/usr/bin/env bash
# `make bench`: runs every bench of the workspace in the release profile, on a private Redis, and prints what they measured.
# Each bench writes target/bench/<subject>.json (under CARGO_TARGET_DIR where that is set).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"
cd "$ROOT"

bash scripts/install.sh build
benches=$(cargo metadata --no-deps --format-version 1 | jq -r '.packages[].targets[] | select(.kind | index("bench")) | .name')
if [[ -z $benches ]]; then
  say "error: no package of this workspace has a bench"
  exit 1
fi
RESULTS=${CARGO_TARGET_DIR:-$ROOT/target}/bench
rm -rf "$RESULTS"
mkdir -p "$RESULTS" "$STATE"
cargo bench --workspace --benches --no-run

WORK=$(mktemp -d "$STATE/bench.XXXXXX")
cleanup() {
  end_process "$WORK/redis.pid" KILL 5 || true
  rm -rf "$WORK"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# shellcheck disable=SC2034  # read by launch
LAUNCH=(setpriv --pdeathsig KILL)
start_redis "$WORK" --save '' --appendonly no
REDIS_URL=redis://127.0.0.1:$REDIS_PORT/0 VOICEAI_BENCH_DIR=$RESULTS cargo bench --workspace --benches

for file in "$RESULTS"/*.json; do
  [[ -s $file ]] || {
    say "error: the benches wrote nothing to $RESULTS"
    exit 1
  }
  printf '\n%s\n' "$(basename "$file" .json)"
  jq -r '["work", "unit", "ours", "peer", "peer name", "ratio"],
    (.rows[] | [.work, .unit, .ours, (.peer // "-"), (.peer_name // "-"), (.ratio // "-")]) | @tsv' "$file" |
    awk -F'\t' '{printf "%-40s %-12s %14s %14s  %-16s %8s\n", $1, $2, $3, $4, $5, $6}'
done
