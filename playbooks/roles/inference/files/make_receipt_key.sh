#!/bin/bash
# make_receipt_key.sh CREDENTIAL
#
# Make the key with which this box signs its receipts, and seal it to this machine: to its TPM if it has one, else to a
# secret of its own that only root reads. The open key lies in memory only, and only for a moment.
set -euo pipefail
umask 077

credential=$1
work=$(mktemp -d /run/skerry-key.XXXXXX)
trap 'rm -rf "$work"' EXIT

/opt/skerry/current/bin/skerry key new receipt --out "$work" >/dev/null 2>&1
mkdir -p "$(dirname "$credential")"
# Without a binding to the firmware's measurements: an update of the firmware must not cost the box its name.
systemd-creds encrypt --name=receipt-key --tpm2-pcrs= "$work/receipt.key" "$credential.new"
sync "$credential.new"
mv -T "$credential.new" "$credential"
sync "$(dirname "$credential")"
