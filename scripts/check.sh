#!/usr/bin/env bash
# `make check`: format, clippy with warnings denied, cargo-deny, documentation, shellcheck. Needs no server.
#
#   scripts/check.sh            every part, going on after a failed one, so that one run shows all there is to mend
#   scripts/check.sh PART...    only these: format, clippy, deny, docs, shell
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"
cd "$ROOT" || exit 1

check_format() { cargo fmt --all -- --check; }

check_clippy() { cargo clippy --workspace --all-targets --locked --keep-going -- -D warnings; }

# The advisory database that the repository carries, laid out as the git clone that cargo-deny expects.
lay_advisories() {
  local target=$STATE/advisory-db packed date age
  # The name that cargo-deny gives to its default database.
  local clone=$target/advisory-db-3157b0e258782691
  packed=$(printf '%s\n' third-party/advisory-db/advisory-db-*.tar.gz | sort | tail -n 1)
  [[ -s $packed ]] || {
    say "error: third-party/advisory-db holds no advisory-db-YYYY-MM-DD.tar.gz"
    return 1
  }
  date=${packed##*advisory-db-}
  date=${date%.tar.gz}
  age=$((($(date -u +%s) - $(date -u -d "$date" +%s)) / 86400))
  if ((age > 30)); then
    say "warning: the advisory database is $age days old (of $date); third-party/advisory-db/README.md says how to renew it"
  else
    say "advisory database: of $date, $age days old"
  fi
  if [[ $(cat "$target/from" 2>/dev/null) != "$packed" ]]; then
    rm -rf "$target"
    mkdir -p "$clone"
    tar -xzf "$packed" -C "$clone" || return 1
    git -C "$clone" init --quiet --initial-branch=main &&
      git -C "$clone" -c user.name=advisories -c user.email=advisories@localhost -c commit.gpgsign=false commit --quiet --allow-empty -m "$date" || return 1
    printf '%s\n' "$packed" >"$target/from"
  fi
  # cargo-deny refuses a clone that was not fetched for long, and takes its age from this file; the true age stands above.
  git -C "$clone" rev-parse HEAD >"$clone/.git/FETCH_HEAD"
}

check_deny() {
  # All crates of Cargo.lock, those of other platforms too, which a build has not fetched.
  cargo fetch --locked --quiet && lay_advisories || return 1
  cargo deny --offline --log-level error check --hide-inclusion-graph bans licenses sources advisories
}

check_docs() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --keep-going; }

check_shell() {
  local -a files=()
  local file
  # Every shell script of the repository, by name or by its first line.
  while IFS= read -r -d '' file; do
    [[ -f $file ]] || continue
    if [[ $file == *.sh ]] || head -n 1 "$file" | grep -qE '^#!.*\b(ba|da)?sh\b'; then files+=("$file"); fi
  done < <(git ls-files -z --cached --others --exclude-standard)
  ((${#files[@]})) || {
    say "error: no shell script was found"
    return 1
  }
  shellcheck --external-sources "${files[@]}" && say "${#files[@]} scripts"
}

parts=("$@")
((${#parts[@]})) || parts=(format shell deny clippy docs)
bash "$ROOT/scripts/install.sh" check || exit 1
failed=()
for part in "${parts[@]}"; do
  declare -F "check_$part" >/dev/null || {
    say "error: there is no check named $part; there are format, clippy, deny, docs, shell"
    exit 2
  }
  began=$(uptime_ms)
  say "--- check $part"
  if "check_$part"; then result=ok; else
    result=FAILED
    failed+=("$part")
  fi
  say "--- check $part: $result ($((($(uptime_ms) - began) / 1000)) s)"
done
if ((${#failed[@]})); then
  say "check: failed: ${failed[*]}"
  exit 1
fi
say "check: all passed: ${parts[*]}"
