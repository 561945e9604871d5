#!/bin/bash
# write_receipt.sh
#
# Have the unit write a receipt; prints its path if there is a new one, nothing if there is nothing new to say.
set -euo pipefail

newest() {
    local receipts=(/var/lib/skerry/receipts/receipt-*.json)
    [[ ! -e ${receipts[-1]} ]] || echo "${receipts[-1]}"
}

if [[ $(systemctl show --value --property=NeedDaemonReload skerry-receipt.service) == yes ]]; then
    systemctl daemon-reload
fi
before=$(newest)
if ! systemctl start skerry-receipt.service; then
    echo "cannot write the receipt; the journal says:" >&2
    journalctl --no-pager --output=cat --lines=15 --unit=skerry-receipt.service >&2
    exit 1
fi
after=$(newest)
[[ $before == "$after" ]] || echo "$after"
