#!/bin/bash
# make_folders.sh [--check]
#
# Make the folders that Skerry's parts expect, and give them back to root if somebody else got them. Prints each one that
# it changed (with --check: would change).
set -euo pipefail

check=${1:-}

while read -r folder; do
    if [[ $(stat -c '%F %a %u:%g' "$folder" 2>/dev/null || true) != 'directory 755 0:0' ]]; then
        echo "$folder"
        [[ $check == --check ]] || install -d -m 0755 -o root -g root "$folder"
    fi
done <<'FOLDERS'
/etc/skerry
/etc/skerry/keys
/opt/skerry
/opt/skerry/root
/opt/skerry/versions
/var/lib/skerry
/var/lib/skerry/models
FOLDERS
