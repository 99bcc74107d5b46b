#!/usr/bin/env bash
# Prints the cloud-config of a new server on stdout, from the bootstrap variables in the environment:
#
#   INSTANCE_NAME SERVICE ENVIRONMENT NAMESPACE ECR_REGISTRY ECR_TAG CONFIG_BUCKET CONFIG_REF BASTION_PUBLIC_KEY AWS_REGION
#   and where they are set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY
#
# The document is JSON, which is YAML as well: no value can break out of its place, whatever it holds. The values end in
# /opt/deployment/.env, readable by root alone; then the host's configuration is fetched from the bucket and its init.sh run.
# Replace this script by your own with CLOUD_INIT_SCRIPT.
set -euo pipefail

missing=()
for name in INSTANCE_NAME SERVICE ENVIRONMENT NAMESPACE ECR_REGISTRY ECR_TAG CONFIG_BUCKET CONFIG_REF BASTION_PUBLIC_KEY AWS_REGION; do
  if [ -z "${!name:-}" ]; then missing+=("$name"); fi
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "not set: ${missing[*]}" >&2
  exit 1
fi

printf '#cloud-config\n'
# shellcheck disable=SC2016 # the script in it runs on the server
jq -n --arg bootstrap '#!/bin/sh
set -eu
set -a
. /opt/deployment/.env
set +a
mkdir -p /opt/deployment/config
aws s3 cp --only-show-errors "s3://$CONFIG_BUCKET/$CONFIG_REF/deployment.tar.gz" /opt/deployment/deployment.tar.gz
tar -xzf /opt/deployment/deployment.tar.gz -C /opt/deployment/config
exec /opt/deployment/config/init.sh --service "$SERVICE" --ecr-tag "$ECR_TAG"
' '
  # A shell reads the file back: each value stands in single quotes.
  def quoted: "\u0027" + gsub("\u0027"; "\u0027\\\u0027\u0027") + "\u0027";
  ["ENVIRONMENT", "NAMESPACE", "ECR_REGISTRY", "ECR_TAG", "CONFIG_BUCKET", "CONFIG_REF", "BASTION_PUBLIC_KEY", "AWS_REGION",
   "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SERVICE"] as $names
  | {
      hostname: $ENV.INSTANCE_NAME,
      preserve_hostname: false,
      package_update: true,
      packages: ["awscli", "ca-certificates", "docker.io"],
      ssh_authorized_keys: [$ENV.BASTION_PUBLIC_KEY],
      write_files: [
        { path: "/opt/deployment/.env", permissions: "0600", encoding: "b64",
          content: ("HOSTNAME=" + ($ENV.INSTANCE_NAME | quoted) + "\n"
            + ([$names[] | . as $name | $ENV[$name] // empty | select(. != "") | $name + "=" + quoted + "\n"] | add)
            | @base64) },
        { path: "/opt/deployment/bootstrap.sh", permissions: "0700", encoding: "b64", content: ($bootstrap | @base64) }
      ],
      runcmd: [["/opt/deployment/bootstrap.sh"]],
      final_message: "start-up took $UPTIME seconds"
    }'
