#!/usr/bin/env bash
# The servers that tests share: one Redis, one PostgreSQL, one S3 store, each test with a database or bucket of its own.
#
#   test-servers.sh run COMMAND...             starts all three, runs COMMAND with their addresses in its environment, stops them
#   test-servers.sh serve PART DIR [IDLE]      serves one part (redis, postgres or s3) in the foreground until it is told to end,
#                                              or until no test has held DIR/users.lock for IDLE seconds
#
# `serve` is what crates/testkit starts when a test runs without `run`: it writes NAME=VALUE lines to DIR/env once the server
# has answered, and DIR/supervisor.pid at once. Nothing here is durable: fsync is off and the directory is removed at the end.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

# Ends the part's server and removes its directory. Runs on every way out.
stop_serving() {
  rm -f "$DIR/env"
  case $PART in
    redis)
      end_process "$DIR/redis.pid" KILL 5 || true
      # Where the tests note which database numbers are taken.
      if [[ -s $DIR/redis.ports ]]; then rm -rf "${TMPDIR:-/tmp}/voiceai-redis-$(<"$DIR/redis.ports")-$EUID"; fi
      ;;
    # QUIT is PostgreSQL's immediate shutdown: nothing needs to be written, and its children end with it.
    postgres) end_process "$DIR/postgres.pid" QUIT 10 || true ;;
    s3)
      end_process "$DIR/s3.pid" KILL 5 || true
      remove_s3_sockets "$DIR"
      ;;
  esac
}

# Tests never drop their databases themselves, which would cost each of them time: the name says which process made it.
drop_orphaned_databases() {
  local name pid
  while read -r name; do
    pid=${name#t_}
    pid=${pid%%_*}
    [[ -e /proc/$pid ]] ||
      psql -X -q "$VOICEAI_TEST_DATABASE_URL" -c "DROP DATABASE IF EXISTS \"$name\" WITH (FORCE)" >/dev/null 2>&1 || true
  done < <(psql -X -q "$VOICEAI_TEST_DATABASE_URL" -Atc "SELECT datname FROM pg_database WHERE datname ~ '^t_[0-9]+_'" 2>/dev/null)
}

serve() {
  PART=$1
  DIR=$2
  local idle=${3:-0} quiet=0 access secret user_lock start_lock
  mkdir -p "$DIR"
  # A supervisor that was killed may have left its server.
  for PART in redis postgres s3; do stop_serving; done
  PART=$1
  find "$DIR" -mindepth 1 -maxdepth 1 ! -name '*.lock' ! -name supervisor.log -exec rm -rf {} +
  record_process "$DIR/supervisor.pid" $$
  trap stop_serving EXIT
  trap 'exit 0' TERM INT HUP
  # If this shell is killed, the kernel ends its server.
  # shellcheck disable=SC2034  # read by launch
  LAUNCH=(setpriv --pdeathsig KILL)
  # shellcheck disable=SC2034  # read by start_postgres
  POSTGRES_LAUNCH=(setpriv --pdeathsig QUIT)

  case $PART in
    redis)
      # Persistence off; a database number for each test, and room for clients of many tests at once.
      start_redis "$DIR" --databases 256 --save '' --appendonly no --maxclients 4000
      printf 'VOICEAI_TEST_REDIS_URL=%s\n' "redis://127.0.0.1:$REDIS_PORT" >"$DIR/env.new"
      ;;
    postgres)
      init_postgres "$DIR" voiceai trust
      start_postgres "$DIR" voiceai '' -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=400 \
        -c shared_buffers=64MB -c autovacuum=off -c max_wal_size=4GB -c wal_level=minimal -c max_wal_senders=0
      VOICEAI_TEST_DATABASE_URL=postgres://voiceai@127.0.0.1:$POSTGRES_PORT/postgres
      printf 'VOICEAI_TEST_DATABASE_URL=%s\n' "$VOICEAI_TEST_DATABASE_URL" >"$DIR/env.new"
      ;;
    s3)
      ensure_venv
      access=test$(random_hex 8)
      secret=$(random_hex 20)
      start_s3 "$DIR" "$access" "$secret" first-bucket
      printf '%s\n' "VOICEAI_TEST_S3_ENDPOINT=$S3_ENDPOINT" "VOICEAI_TEST_S3_ACCESS_KEY=$access" "VOICEAI_TEST_S3_SECRET_KEY=$secret" >"$DIR/env.new"
      ;;
    *) usage ;;
  esac
  mv "$DIR/env.new" "$DIR/env"

  exec {user_lock}>"$DIR/users.lock" {start_lock}>"$DIR/start.lock"
  while alive "$DIR/$PART.pid"; do
    sleep 2 &
    wait $! || true
    if [[ $PART == postgres ]]; then drop_orphaned_databases; fi
    ((idle > 0)) || continue
    # Tests hold this lock shared as long as they live; a new one takes start.lock before it looks.
    if flock -n -x "$start_lock"; then
      if flock -n -x "$user_lock"; then
        quiet=$((quiet + 2))
        if ((quiet >= idle)); then exit 0; fi
        flock -u "$user_lock"
      else
        quiet=0
      fi
      flock -u "$start_lock"
    fi
  done
  fail_part "$PART" "ended by itself" "$DIR/$PART.log"
}

SUPERVISORS=()
stop_supervisors() {
  local pid
  for pid in "${SUPERVISORS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${SUPERVISORS[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$RUN"
}

run() {
  local part pid code=0 started
  started=$(uptime_ms)
  mkdir -p "$STATE"
  RUN=$(mktemp -d "$STATE/tests.XXXXXX")
  chmod 755 "$RUN"
  trap stop_supervisors EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  for part in redis postgres s3; do
    mkdir "$RUN/$part"
    # A session of its own keeps Ctrl-C away from the servers until the tests have ended; the signal ends them if this shell is killed.
    setpriv --pdeathsig TERM setsid bash "$0" serve "$part" "$RUN/$part" </dev/null >"$RUN/$part/supervisor.log" 2>&1 &
    SUPERVISORS+=("$!")
  done
  for part in redis postgres s3; do
    pid=${SUPERVISORS[0]}
    [[ $part == postgres ]] && pid=${SUPERVISORS[1]}
    [[ $part == s3 ]] && pid=${SUPERVISORS[2]}
    until [[ -s $RUN/$part/env ]]; do
      if ! kill -0 "$pid" 2>/dev/null; then
        say "error: the tests' $part did not start:"
        cat "$RUN/$part/supervisor.log" >&2
        exit 1
      fi
      sleep 0.05
    done
    set -a
    # shellcheck disable=SC1090  # written by serve
    . "$RUN/$part/env"
    set +a
  done
  say "test servers ready after $(($(uptime_ms) - started)) ms"
  "$@" || code=$?
  exit "$code"
}

case ${1:-} in
  serve)
    [[ $# -ge 3 && $# -le 4 ]] || usage
    shift
    serve "$@"
    ;;
  run)
    [[ $# -ge 2 ]] || usage
    shift
    run "$@"
    ;;
  *) usage ;;
esac
