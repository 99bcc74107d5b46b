#!/usr/bin/env bash
# The benches, in the release profile, on a private Redis, with their peers; what was measured is printed and written to
# target/bench/<subject>.json (under CARGO_TARGET_DIR where that is set).
#
# The benches and their peers are workspaces of their own, so the product's dependency tree knows none of them. A peer that
# cannot be installed here (no npm, no registry) is left out with a note.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../scripts/stack/lib.sh
. "$(dirname "$0")/../scripts/stack/lib.sh"
cd "$ROOT"

bash scripts/install.sh build
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
RESULTS=$TARGET/bench
mkdir -p "$RESULTS" "$STATE"

say "building our side (release, thin LTO: some minutes the first time)"
# The same versions as the product's.
cp Cargo.lock bench/queue/Cargo.lock
cargo build --quiet --release --manifest-path bench/queue/Cargo.toml --target-dir "$TARGET/bench-build"
cp Cargo.lock bench/mail/Cargo.lock
cargo build --quiet --release --manifest-path bench/mail/Cargo.toml --target-dir "$TARGET/bench-build"
cp Cargo.lock bench/monitor/Cargo.lock
cargo build --quiet --release --manifest-path bench/monitor/Cargo.toml --target-dir "$TARGET/bench-build"
cp Cargo.lock bench/scaler/Cargo.lock
cargo build --quiet --release --manifest-path bench/scaler/Cargo.toml --target-dir "$TARGET/bench-build"
cp Cargo.lock bench/tasker/Cargo.lock
cargo build --quiet --release --manifest-path bench/tasker/Cargo.toml --target-dir "$TARGET/bench-build"
# Both services are measured whole: their benches start them themselves.
cargo build --quiet --release -p voiceai-scaler --bin voiceai-scaler
cargo build --quiet --release -p voiceai-tasker --bin voiceai-tasker

if command -v npm >/dev/null && (cd bench/queue/peers/bullmq && npm install --silent --no-package-lock --no-fund --no-audit); then
  export BENCH_BULLMQ=$ROOT/bench/queue/peers/bullmq
else
  say "note: BullMQ could not be installed (node and npm are needed); its column stays empty"
fi
if cargo build --quiet --release --locked --manifest-path bench/queue/peers/apalis/Cargo.toml --target-dir "$TARGET/bench-build-apalis"; then
  export BENCH_APALIS=$TARGET/bench-build-apalis/release/bench-queue-apalis
else
  say "note: apalis-redis could not be built; its column stays empty"
fi

# The store, and the client that a script would hand dumps to.
ensure_venv
if AWS_PYTHON=$(bash scripts/stack/tool.sh providers); then
  export AWS_CLI=${AWS_PYTHON%/*}/aws
else
  say "note: the AWS command line could not be installed; the backup has no peer"
fi

WORK=$(mktemp -d "$STATE/bench.XXXXXX")
cleanup() {
  end_process "$WORK/s3/s3.pid" KILL 10 || true
  remove_s3_sockets "$WORK/s3" || true
  end_process "$WORK/redis.pid" KILL 5 || true
  end_process "$WORK/postgres/postgres.pid" KILL 5 || true
  rm -rf "$WORK"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# shellcheck disable=SC2034  # read by launch
LAUNCH=(setpriv --pdeathsig KILL)
start_redis "$WORK" --save '' --appendonly no
REDIS_URL=redis://127.0.0.1:$REDIS_PORT/0 BENCH_DIR=$RESULTS "$TARGET/bench-build/release/bench-queue" direct

# Mail stands on PostgreSQL, which commits as it does in production: every commit is on the disk.
init_postgres "$WORK/postgres" voiceai trust
start_postgres "$WORK/postgres" voiceai '' -c max_connections=100 -c shared_buffers=256MB
DATABASE_URL=postgres://voiceai@127.0.0.1:$POSTGRES_PORT/postgres BENCH_DIR=$RESULTS "$TARGET/bench-build/release/bench-mail"

# The health monitor in a database of its own.
psql -Xqd "postgres://voiceai@127.0.0.1:$POSTGRES_PORT/postgres" -c 'CREATE DATABASE monitor'
DATABASE_URL=postgres://voiceai@127.0.0.1:$POSTGRES_PORT/monitor BENCH_DIR=$RESULTS "$TARGET/bench-build/release/bench-monitor"

# Backups, exports and webhooks: the service in a database and a bucket of its own.
psql -Xqd "postgres://voiceai@127.0.0.1:$POSTGRES_PORT/postgres" -c 'CREATE DATABASE tasker'
redis-cli -p "$REDIS_PORT" FLUSHALL >/dev/null
S3_ACCESS_KEY=bench
S3_SECRET_KEY=$(random_hex 16)
start_s3 "$WORK/s3" "$S3_ACCESS_KEY" "$S3_SECRET_KEY" bench
REDIS_URL=redis://127.0.0.1:$REDIS_PORT/0 DATABASE_URL=postgres://voiceai@127.0.0.1:$POSTGRES_PORT/tasker \
  S3_BUCKET=bench S3_ENDPOINT=$S3_ENDPOINT S3_ACCESS_KEY=$S3_ACCESS_KEY S3_SECRET_KEY=$S3_SECRET_KEY \
  TASKER_BINARY=$TARGET/release/voiceai-tasker BENCH_DIR=$RESULTS "$TARGET/bench-build/release/bench-tasker"
end_process "$WORK/s3/s3.pid" TERM 20

# The scaler in a database and a Redis of its own, which it fills with up to 50,000 servers.
psql -Xqd "postgres://voiceai@127.0.0.1:$POSTGRES_PORT/postgres" -c 'CREATE DATABASE scaler'
redis-cli -p "$REDIS_PORT" FLUSHALL >/dev/null
REDIS_URL=redis://127.0.0.1:$REDIS_PORT/0 DATABASE_URL=postgres://voiceai@127.0.0.1:$POSTGRES_PORT/scaler \
  SCALER_BINARY=$TARGET/release/voiceai-scaler BENCH_DIR=$RESULTS "$TARGET/bench-build/release/bench-scaler"
