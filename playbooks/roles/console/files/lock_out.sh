#!/bin/bash
# Take every role away from whoever is not named, and close the accounts that the site listed before.
#
#     lock_out.sh [--check] NAME...      the accounts that stay as they are
#
# An account is closed, not deleted: its files stay, and nobody else gets its number and with it those files. A user whom
# somebody put into skerry-client by hand keeps that: it is how programs of the box may ask. The other three roles are the
# site's file alone. Names on stdout what it changes; with --check it only names it.
set -euo pipefail

KEYS=/etc/skerry/authorized_keys
check=
if [ "${1:-}" = --check ]; then
    check=yes
    shift
fi
stay=" $* README "

listed() { [[ $stay == *" $1 "* ]]; }

# The key first: nobody comes in again while the rest is taken away.
for file in "$KEYS"/*; do
    user=${file##*/}
    if [ ! -e "$file" ] || listed "$user"; then continue; fi
    echo "account $user: closed"
    [ -z "$check" ] || continue
    rm -f -- "$file"
    getent passwd "$user" >/dev/null || continue
    usermod --lock --groups '' --shell /usr/sbin/nologin -- "$user"
    # Its sessions in good order first: killed outright, the user's own manager would count as failed.
    systemctl stop "user-$(id -u "$user").slice" 2>/dev/null || true
    pkill -KILL -U "$user" || [ $? -eq 1 ]
done

for group in skerry-viewer skerry-operator skerry-admin; do
    for user in $(getent group "$group" | cut -d: -f4 | tr ',' ' '); do
        listed "$user" && continue
        echo "account $user: no longer in $group"
        [ -n "$check" ] || gpasswd --delete "$user" "$group" >/dev/null
    done
done
