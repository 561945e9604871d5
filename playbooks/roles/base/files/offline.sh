#!/bin/bash
# Switch off what a machine does that is meant to be online. Names what it changes on stdout; --check changes nothing.
#
# Debian's package sources are renamed, not removed: take `.disabled` off a name in /etc/apt to have one back.
set -euo pipefail
shopt -s nullglob

check=
if [ "${1:-}" = --check ]; then check=yes; fi

MASKED=(
    apt-daily.timer apt-daily.service apt-daily-upgrade.timer apt-daily-upgrade.service unattended-upgrades.service
    systemd-timesyncd.service systemd-time-wait-sync.service chrony.service ntpsec.service
    ctrl-alt-del.target debug-shell.service
)

for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -e "$list" ] || continue
    echo "$list"
    [ -n "$check" ] || mv -- "$list" "$list.disabled"
done

found=()
for unit in "${MASKED[@]}"; do
    if [ "$(readlink "/etc/systemd/system/$unit")" != /dev/null ]; then found+=("$unit"); fi
done
[ "${#found[@]}" -gt 0 ] || exit 0
printf '%s\n' "${found[@]}"
[ -z "$check" ] || exit 0
# Stopped first: a timer whose service vanishes under it counts as failed.
systemctl stop "${found[@]}" 2>/dev/null || true
systemctl --quiet mask "${found[@]}"
