#!/usr/bin/env bash
# Starts the private stack, or finds it running: Redis, PostgreSQL, an S3 store and an SMTP sink on free ports of 127.0.0.1.
#
#   eval "$(make stack)"     or     eval "$(scripts/stack/stack-up.sh)"
#
# Standard output holds `export` lines only, and nothing when a part did not start. State, logs and data lie under .stack/
# (VOICEAI_STACK_DIR names another place); the data stays there when the stack is stopped, until the directory is removed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

RUN=$STATE/run
BUCKET=voiceai-backups
PARTS=(redis postgres s3 smtp)

# One start or stop at a time; the lock is not inherited by the servers.
if [[ ${1:-} != --locked ]]; then
  mkdir -p "$STATE"
  exec flock --close --timeout 600 "$STATE/stack.lock" bash "$0" --locked
fi

part_is_up() {
  local part=$1
  alive "$RUN/$part/$part.pid" || return 1
  # Each part left its variables when it had answered.
  [[ -s $RUN/$part/vars ]] || return 1
  # shellcheck disable=SC1090  # written below
  . "$RUN/$part/vars"
  case $part in
    redis) wait_for 10 redis_answers "$REDIS_PORT" ;;
    postgres) wait_for 10 voiceai_answers ;;
    s3) wait_for 10 s3_answers "$S3_ENDPOINT" "$S3_ACCESS" "$S3_SECRET" "$BUCKET" ;;
    smtp) wait_for 10 smtp_answers "$SMTP_SINK_PORT" ;;
  esac
}

# shellcheck disable=SC2153  # PASSWORD comes from the credentials' file
# As the services will connect: their role, their database, a write.
voiceai_answers() {
  PGCONNECT_TIMEOUT=5 PGPASSWORD=$PASSWORD psql -X -q -h 127.0.0.1 -p "$POSTGRES_PORT" -U voiceai -d voiceai -Atc 'CREATE TEMP TABLE probe AS SELECT 1'
}

# Made once and kept, so that a restart over the same data still fits.
load_credentials() {
  local file=$STATE/credentials
  if [[ ! -s $file ]]; then
    (umask 077 && printf 'PASSWORD=%s\nS3_ACCESS=%s\nS3_SECRET=%s\n' "$(random_hex 16)" "voiceai$(random_hex 6)" "$(random_hex 20)" >"$file.new")
    mv "$file.new" "$file"
  fi
  # shellcheck disable=SC1090  # written above
  . "$file"
}

# remember PART NAME...: keeps the part's variables for the next `make stack`.
remember() {
  local part=$1 name
  shift
  for name in "$@"; do printf '%s=%s\n' "$name" "${!name}"; done >"$RUN/$part/vars.new"
  mv "$RUN/$part/vars.new" "$RUN/$part/vars"
}

up_redis() {
  # shellcheck disable=SC2034  # read by start_redis
  REDIS_CONF=("$ROOT/deploy/redis/redis.conf")
  start_redis "$RUN/redis"
  remember redis REDIS_PORT
}

up_postgres() {
  local dir=$RUN/postgres
  if [[ ! -e $dir/data/PG_VERSION ]]; then
    rm -rf "$dir/data"
    # initdb, which runs as another user, reads the password from here.
    (umask 077 && printf '%s\n' "$PASSWORD" >"$dir/password")
    if ((EUID == 0)); then chown postgres: "$dir/password"; fi
    init_postgres "$dir" postgres "$dir/password"
    rm -f "$dir/password"
  fi
  start_postgres "$dir" postgres "$PASSWORD" -c max_connections=200
  # The services' role is no superuser, so that a missing right shows here; CREATEDB is for the restore of a backup.
  PGPASSWORD=$PASSWORD psql -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$POSTGRES_PORT" -U postgres -d postgres \
    >>"$dir/postgres.log" 2>&1 <<'SQL' || fail_part PostgreSQL "refused to make the role and the database" "$dir/postgres.log"
\getenv password PGPASSWORD
SELECT 'CREATE ROLE voiceai LOGIN CREATEDB' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'voiceai') \gexec
ALTER ROLE voiceai PASSWORD :'password';
SELECT 'CREATE DATABASE voiceai OWNER voiceai' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'voiceai') \gexec
SQL
  voiceai_answers >/dev/null
  remember postgres POSTGRES_PORT
}

up_s3() {
  start_s3 "$RUN/s3" "$S3_ACCESS" "$S3_SECRET" "$BUCKET"
  remember s3 S3_PORT S3_ENDPOINT
}

up_smtp() {
  start_smtp "$RUN/smtp" "$STATE/mail"
  remember smtp SMTP_SINK_PORT
}

export_lines() {
  cat <<LINES
export REDIS_URL=redis://127.0.0.1:$REDIS_PORT/0
export DATABASE_URL=postgres://voiceai:$PASSWORD@127.0.0.1:$POSTGRES_PORT/voiceai
export S3_ENDPOINT=$S3_ENDPOINT
export S3_BUCKET=$BUCKET
export S3_REGION=us-east-1
export S3_ACCESS_KEY=$S3_ACCESS
export S3_SECRET_KEY=$S3_SECRET
export SMTP_HOST=127.0.0.1
export SMTP_PORT=$SMTP_SINK_PORT
export SMTP_TLS=off
export SMTP_SINK_DIR=$(printf '%q' "$STATE/mail")
LINES
}

bash "$ROOT/scripts/install.sh" stack
ensure_venv
load_credentials
started=$(uptime_ms)
news=()
for part in "${PARTS[@]}"; do
  mkdir -p "$RUN/$part"
  if part_is_up "$part"; then continue; fi
  # A part that runs and does not answer is ended; its data stays.
  end_process "$RUN/$part/$part.pid" TERM 10
  if [[ $part == s3 ]]; then remove_s3_sockets "$RUN/s3"; fi
  rm -f "$RUN/$part/vars"
  "up_$part"
  news+=("$part")
done
if ((${#news[@]})); then
  say "stack: started ${news[*]} in $(($(uptime_ms) - started)) ms; logs under $RUN; stop with: make stack-down"
else
  say "stack: runs already; stop with: make stack-down"
fi
export_lines
