#!/bin/bash
# remove_old.sh [--check] CURRENT KEEP
#
# Keep CURRENT and the newest others, KEEP in all; remove the rest. Prints what it removed (with --check: would remove).
set -euo pipefail

check=
if [[ $1 == --check ]]; then
    check=yes
    shift
fi
current=$1
keep=$2

cd "$(dirname "$current")" 2>/dev/null || exit 0
# The order is that in which they were built: the time of the folder itself, which is set once.
find . -mindepth 1 -maxdepth 1 -type d ! -name '.*' ! -name "$(basename "$current")" -printf '%T@ %f\n' |
    sort -rn | tail -n +"$keep" | cut -d ' ' -f 2- |
    while read -r old; do
        echo "$old"
        if [[ ! $check ]]; then
            # Hidden first: a crash in the middle leaves no half version under a name that could be switched to.
            mv -T "$old" ".new.removed-$old"
            rm -rf ".new.removed-$old"
        fi
    done
