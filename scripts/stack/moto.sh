#!/usr/bin/env bash
# Prints the path of moto_server, a server that stands in for SSM and Secrets Manager in tests; installs it where missing.
set -euo pipefail
exec bash "$(dirname "$0")/tool.sh" moto
