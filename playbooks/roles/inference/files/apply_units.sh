#!/bin/bash
# apply_units.sh [--check] [--off] UNIT[:PATH...] ...
#
# Bring units to what their files say: let systemd see what changed, enable, start, and restart what was started before
# its unit or one of the PATHs changed (a folder counts with what is in it, two levels deep). Prints what it did (with
# --check: would do), one line each. Name a socket before its service. With --off units are stopped and disabled.
#
# It looks at what runs, not at what a play has just changed: after a play that failed half-way the next one restarts
# what is stale.
set -euo pipefail

check='' off=''
while [[ ${1:-} == --* ]]; do
    case $1 in
    --check) check=yes ;;
    --off) off=yes ;;
    *) echo "apply_units.sh: unknown option $1" >&2 && exit 2 ;;
    esac
    shift
done

# Loading verifies every byte of every model, which takes a while on a slow disk.
limit_s=330

act() {
    local status=0
    echo "$*"
    [[ ! $check ]] || return 0
    timeout "$limit_s" systemctl --quiet "$@" >/dev/null || status=$?
    if [[ $status -ne 0 ]]; then
        {
            echo "cannot $1 ${*: -1}: systemctl ended with $status, expected 0; the journal says:"
            journalctl --no-pager --output=cat --lines=15 --unit="${*: -1}"
            echo "next: systemctl status ${*: -1}"
        } >&2
        exit 1
    fi
}

# By ctime, because a file that was moved into its place keeps its mtime.
stale() {
    local unit=$1 started=ActiveEnterTimestamp since
    shift
    [[ $unit != *.service ]] || started=ExecMainStartTimestamp
    since=$(systemctl show --value --timestamp=us+utc --property="$started" "$unit")
    [[ $since ]] &&
        find "/etc/systemd/system/$unit" "/etc/systemd/system/$unit.d" "$@" -maxdepth 2 -newerct "$since" -print \
            2>/dev/null | grep -q .
}

if systemctl show --value --property=NeedDaemonReload 'skerry*' | grep -qx yes; then
    [[ $check ]] || systemctl daemon-reload
fi

for argument; do
    IFS=: read -r -a parts <<<"$argument"
    unit=${parts[0]}
    if [[ $off ]]; then
        [[ $(systemctl is-enabled "$unit" 2>/dev/null || true) != enabled ]] || act disable "$unit"
        [[ $(systemctl is-active "$unit" || true) == inactive ]] || act stop "$unit"
        continue
    fi
    [[ $(systemctl is-enabled "$unit" 2>/dev/null || true) == enabled ]] || act enable "$unit"
    case $(systemctl is-active "$unit" || true) in
    inactive) act start "$unit" ;;
    active)
        if stale "$unit" "${parts[@]:1}"; then
            # systemd refuses to start a socket while its service runs.
            [[ $unit != *.socket || ! -e /etc/systemd/system/${unit%.socket}.service ]] ||
                act stop "${unit%.socket}.service"
            act restart "$unit"
        fi
        ;;
    *) act restart "$unit" ;; # failed, or about to be tried again: now, with what is there now
    esac
done
