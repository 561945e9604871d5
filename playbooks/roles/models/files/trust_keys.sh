#!/bin/bash
# trust_keys.sh [--check] KEYS
#
# Make /etc/skerry/keys hold the keys of the folder KEYS and nothing else. Prints each file that it changed (with
# --check: would change). The daemon reads the folder at every load: a key that is gone is refused from then on.
set -euo pipefail
umask 022

check=
if [[ $1 == --check ]]; then
    check=yes
    shift
fi
keys=$1
trusted=/etc/skerry/keys

shopt -s nullglob
wanted=("$keys"/*.pub)
if [[ ${#wanted[@]} -eq 0 ]]; then
    echo "cannot set the trusted keys: found none in $keys, expected at least one; next: build the kit again" >&2
    exit 1
fi
# New keys first, so that there is no moment in which a model that stays good is refused.
for key in "${wanted[@]}"; do
    target=$trusted/$(basename "$key")
    if ! cmp -s "$key" "$target" || [[ $(stat -c '%a %u:%g' "$target") != '644 0:0' ]]; then
        echo "$target"
        if [[ ! $check ]]; then
            install -m 0644 -o root -g root "$key" "$trusted/.new"
            sync "$trusted/.new"
            mv -T "$trusted/.new" "$target"
        fi
    fi
done
for target in "$trusted"/* "$trusted"/.new; do
    if [[ ! -e $keys/$(basename "$target") && -e $target ]]; then
        echo "$target (gone)"
        [[ $check ]] || rm -rf "$target"
    fi
done
[[ $check ]] || sync "$trusted"
