#!/bin/bash
# switch.sh [--check] VERSION
#
# Make /opt/skerry/current lead to VERSION, and /usr/local/bin/skerry to its command. Each link changes by one rename:
# there is no moment without it. Prints what it changed (with --check: would change).
set -euo pipefail

check=
if [[ $1 == --check ]]; then
    check=yes
    shift
fi
version=$1

point() {
    local link=$1 target=$2
    [[ $(readlink "$link" || true) != "$target" ]] || return 0
    echo "$link -> $target"
    [[ ! $check ]] || return 0
    ln -sfn "$target" "$link.new"
    mv -T "$link.new" "$link"
    sync "$(dirname "$link")"
}

point /opt/skerry/current "versions/$version"
point /usr/local/bin/skerry /opt/skerry/current/bin/skerry
