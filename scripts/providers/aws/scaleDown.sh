#!/usr/bin/env bash
# Terminates the instance INSTANCE_NAME. One that is not there is success; one of another operation is refused.

HERE=$(dirname -- "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"

must_name_operation
if ! find_instance; then
  [ "$OTHERS" = 0 ] || not_ours "an instance of this name"
  answer absent 0
fi
id=$(of_instance .InstanceId)
if [ "$(of_instance .State.Name)" != shutting-down ]; then
  if ! call ec2 terminate-instances --instance-ids "$id" "${EXTRA[@]}"; then
    # Terminated by somebody else between our look and our call.
    [ "$ERROR_CODE" != InvalidInstanceID.NotFound ] || answer absent 0
    give_up_as_told
  fi
fi
# Shutting down takes a minute or so; the scaler looks again, this only saves it the first looks.
for try in 1 2 3; do
  if ! call ec2 describe-instances --instance-ids "$id"; then
    [ "$ERROR_CODE" = InvalidInstanceID.NotFound ] || answer deleting 0
    answer absent 0
  fi
  if [ "$(printf '%s' "$OUT" | jq -r '[.Reservations[]?.Instances[]?] | first | .State.Name' 2>/dev/null)" = terminated ]; then
    answer absent 0
  fi
  [ "$try" = 3 ] || back_off "$try" 5000
done
answer deleting 0
