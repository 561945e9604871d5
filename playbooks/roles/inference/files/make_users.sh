#!/bin/bash
# make_users.sh [--check] NAME...
#
# Make system users without home, shell and password, and take from one that exists what it should not have. Prints what
# it changed (with --check: would change).
set -euo pipefail

check=
if [[ $1 == --check ]]; then
    check=yes
    shift
fi

for name; do
    if ! entry=$(getent passwd "$name"); then
        echo "$name"
        [[ $check ]] || useradd --system --user-group --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin --comment Skerry "$name"
    elif [[ $entry != *:/nonexistent:/usr/sbin/nologin || $(getent shadow "$name" | cut -d: -f2) != '!'* ||
        $(id -Gn "$name") != "$name" ]]; then
        echo "$name (shell, home, password or groups)"
        [[ $check ]] || usermod --home /nonexistent --shell /usr/sbin/nologin --groups '' --lock "$name"
    fi
done
