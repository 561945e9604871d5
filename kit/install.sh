#!/usr/bin/env bash
# Make this machine a Skerry appliance from the kit in whose folder this lies. `install.sh --help` says how.
#
# In this order: check the key and the signature; copy the kit to the disk; verify the copy; from then on use the copy
# alone; install Python and Ansible from it; run its playbooks. Each step is safe to repeat, whenever it was interrupted.
#
# What this does NOT protect against: a stick with another install.sh. Before the first run compare its digest, or check
# its signature with the system's own tools: docs/how-to/install-from-a-stick.md.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -Eeuo pipefail
shopt -s inherit_errexit

readonly FAILED=1 USAGE=2 DENIED=3 REFUSED=4 UNVERIFIED=5

RUN=/run
STATE=/var/lib/skerry
KITS=$STATE/kit
ETC=/etc/skerry
OPT=/opt/skerry
LOG=/var/log/skerry/install.log
SETUP=/usr/local/sbin/skerry-setup
OS_RELEASE=/etc/os-release
GUARD=/run/skerry-lockout.deadline

# Bytes that an installation takes beside the copy of the kit: Python, Ansible, the runtime, the models once more.
readonly ROOM_TO_INSTALL=800000000
# One part of a path in a kit; kit/manifest.py has the same.
readonly PART='[A-Za-z0-9_+~%@=,][A-Za-z0-9._+~%@=,-]*'
# What operating systems leave on sticks, and the site's file: never copied, so they do no harm.
readonly DROPPINGS=(-name '._*' -o -name .DS_Store -o -name .fseventsd -o -name '.Spotlight-*' -o -name '.Trash*'
    -o -name 'System Volume Information' -o -name Thumbs.db -o -name desktop.ini -o -path ./lost+found -o -path ./site.yaml)

usage() {
    cat <<'END'
Make this machine a Skerry appliance, from this kit alone, without a network.

  install.sh --key SHA256|FILE [--site FILE]     install, or bring up to date
  install.sh --key SHA256|FILE --check           say what would change
  install.sh --key SHA256|FILE --inventory FILE  do it on other machines by SSH

  --key SHA256|FILE  the kit's key: its digest as on your paper (spaces do not
                     matter), or a copy of kit.gpg that came another way. May be
                     left out where this machine has accepted a key before.
  --site FILE        your variables, see site.example.yaml; kept for later runs
  --check            change nothing but copy the kit and install Python and
                     Ansible, and show what the playbooks would change
  --prepare          only copy the kit and install Python and Ansible
  --report           prove the machine's state, promise by promise
  --inventory FILE   the machines of a fleet, see playbooks/inventory.example
  --tags T[,T]       only these parts: base, runtime, models, ...
  --reset uninstall|factory --data keep|wipe --confirm HOSTNAME
                     take Skerry off this machine, or make it as new
  --kit DIR          a kit's folder, if not the one where this script lies

Exit codes: 0 done, 1 failed, 2 usage, 3 not root, 4 this machine will not do
(or its clock, or its disk), 5 the kit is not what the key signed.
END
}

# --- what is told -----------------------------------------------------------------------------------------------------

say() {
    local line
    printf -v line '[%4ds] %s' "$SECONDS" "$*"
    printf '%s\n' "$line"
    if [ -n "${KEEP_LOG:-}" ]; then printf '%s\n' "$line" >>"$LOG"; fi
}

# die CODE WHAT [NEXT]: what was found and what was expected, and the next step.
die() {
    trap - ERR
    { printf '\ninstall.sh: %s\n' "$2" && if [ -n "${3:-}" ]; then printf 'next: %s\n' "$3"; fi; } | fmt -s -w 79 >&2
    if [ -n "${KEEP_LOG:-}" ]; then printf 'install.sh: %s (exit %s)\n' "$2" "$1" >>"$LOG"; fi
    exit "$1"
}

# quietly WHAT COMMAND...: run it into the log; show the end of what it said if it fails.
quietly() {
    local what=$1 out=$WORK/output code=0
    shift
    "$@" >"$out" 2>&1 </dev/null 9>&- || code=$?
    if [ -n "${KEEP_LOG:-}" ]; then cat "$out" >>"$LOG"; fi
    [ "$code" -eq 0 ] && return
    tail -n 12 "$out" >&2
    die $FAILED "cannot $what: ${1##*/} ended with $code, its last lines are above" "mend that, then run this again"
}

megabytes() { printf '%d MB' $((($1 + 500000) / 1000000)); }

# --- the command line -------------------------------------------------------------------------------------------------

parse() {
    KIT=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
    KEY='' SITE='' INVENTORY='' TAGS='' RESET='' DATA='' CONFIRM='' CHECK='' PREPARE='' REPORT=''
    while [ $# -gt 0 ]; do
        case $1 in
        --help | -h) usage && exit 0 ;;
        --check) CHECK=yes ;;
        --prepare) PREPARE=yes ;;
        --report) REPORT=yes ;;
        --key | --site | --inventory | --tags | --reset | --data | --confirm | --kit)
            [ -n "${2:-}" ] || die $USAGE "cannot understand $1: nothing follows it" "install.sh --help"
            case $1 in
            --key) KEY=$2 ;; --site) SITE=$2 ;; --inventory) INVENTORY=$2 ;; --tags) TAGS=$2 ;;
            --reset) RESET=$2 ;; --data) DATA=$2 ;; --confirm) CONFIRM=$2 ;; --kit) KIT=$2 ;;
            esac
            shift
            ;;
        *) die $USAGE "cannot understand $1: no such option" "install.sh --help" ;;
        esac
        shift
    done
    readable_file --site "$SITE"
    [ -z "$INVENTORY" ] || [ -e "$INVENTORY" ] || die $USAGE "cannot read --inventory $INVENTORY: it is not there"
    [ -z "$TAGS" ] || [[ $TAGS =~ ^[a-z,_-]+$ ]] || die $USAGE "cannot understand --tags $TAGS: expected names and commas"
    if [ -n "$RESET$DATA$CONFIRM" ]; then
        [[ $RESET =~ ^(uninstall|factory)$ && $DATA =~ ^(keep|wipe)$ && $CONFIRM =~ ^[A-Za-z0-9.-]+$ ]] ||
            die $USAGE "cannot reset: expected --reset uninstall|factory --data keep|wipe --confirm HOSTNAME"
    fi
}

readable_file() {
    [ -z "$2" ] && return
    [ -f "$2" ] && [ -r "$2" ] || die $USAGE "cannot read $1 $2: expected a file" "give its whole path"
    [ "$(stat -Lc %s -- "$2")" -le 1000000 ] || die $USAGE "cannot use $1 $2: more than 1 MB, expected a few lines"
}

# --- 1. whose kit is it? ----------------------------------------------------------------------------------------------

digest_of() { sha256sum <"$1" | cut -c1-64; }

# The digest of the key that the operator trusts.
trusted_key() {
    local typed=${KEY//[[:space:]:-]/}
    if [[ $typed =~ ^[0-9A-Fa-f]{64}$ ]]; then
        printf '%s\n' "${typed,,}"
    elif [ -n "$KEY" ]; then
        [ -f "$KEY" ] || die $USAGE "cannot use --key $KEY: neither 64 digits of SHA-256 nor a file"
        [[ $(readlink -f -- "$KEY") != "$(readlink -f -- "$KIT")"/* ]] ||
            die $USAGE "cannot use --key $KEY: it lies in the kit, which says nothing of whose kit it is" \
                "--key and the digits from your paper, or a file that came another way"
        digest_of "$KEY"
    elif [ -f "$ETC/kit.gpg" ]; then
        digest_of "$ETC/kit.gpg"
    else
        die $USAGE "cannot tell whose kit this is: no --key, and this machine has accepted none before" \
            "--key and the SHA-256 that you noted when the kit was built"
    fi
}

# value NAME: what a comment line of the manifest says.
value() { sed -n "s/^# $1 //p" "$HEAD/manifest" | sed -n 1p; }

# The manifest is what the key signed. Until here nothing of the kit was believed.
verify_head() {
    local file found expected
    for file in manifest manifest.asc kit.gpg; do
        [ -f "$HEAD/$file" ] && [ ! -L "$HEAD/$file" ] ||
            die $UNVERIFIED "cannot use $KIT: $file is missing, expected the folder of a kit" "--kit DIR, or copy it again"
    done
    expected=$(trusted_key) || exit
    found=$(digest_of "$HEAD/kit.gpg")
    [ "$found" = "$expected" ] ||
        die $UNVERIFIED "cannot trust this kit: its key is $found, expected $expected" \
            "compare with your paper; if the paper is right, the stick is not from your station"
    check_clock
    if command -v gpgv >/dev/null; then
        found=$(gpgv --keyring "$HEAD/kit.gpg" "$HEAD/manifest.asc" "$HEAD/manifest" 2>&1) || bad_signature "$found"
    elif command -v sqv >/dev/null; then
        found=$(sqv --keyring "$HEAD/kit.gpg" "$HEAD/manifest.asc" "$HEAD/manifest" 2>&1) || bad_signature "$found"
    else
        die $FAILED "cannot check the signature: neither gpgv nor sqv is here, expected Debian's apt with one of them"
    fi
    check_form
    KEY_SHA256=$expected KIT_SHA256=$(digest_of "$HEAD/manifest") VERSION=$(value version)
}

bad_signature() {
    printf '%s\n' "$1" | sed 's/^/    /' >&2
    die $UNVERIFIED "cannot trust this kit: the manifest is not what the key signed" "copy the kit to the stick again"
}

# A clock before the kit's time makes signatures and certificates look as if they came from the future.
check_clock() {
    local built
    built=$(value built)
    [[ $built =~ ^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$ ]] ||
        die $UNVERIFIED "cannot use $KIT: its manifest says nothing of when it was built"
    [ "$(date +%s)" -ge "$(date -d "$built" +%s)" ] ||
        die $REFUSED "cannot go on: the clock says $(date -u '+%Y-%m-%d %H:%M') UTC, the kit was built $built" \
            "set it: date -u -s 'YYYY-MM-DD HH:MM' and then, on a real machine, hwclock --systohc"
}

# One set of files has one manifest, and no line means anything else to sha256sum or to the shell.
check_form() {
    local bad
    bad=$(LC_ALL=C grep -anvE "^(# [a-z-]+ [A-Za-z0-9 .:+~-]+|[0-9a-f]{64}  $PART(/$PART)*)\$" "$HEAD/manifest" || true)
    grep -v '^#' "$HEAD/manifest" >"$WORK/signed"
    cut -c67- "$WORK/signed" >"$WORK/list"
    if [ -n "$bad" ] || [ "$(value skerry-kit)" != 1 ] || ! LC_ALL=C sort -cu "$WORK/list" 2>/dev/null ||
        ! grep -qx install.sh "$WORK/list"; then
        die $UNVERIFIED "cannot read the manifest: ${bad:-it is not sorted, or of another format}; expected format 1" \
            "use the install.sh of this kit"
    fi
}

# --- 2. will this machine do? -----------------------------------------------------------------------------------------

check_machine() {
    local found
    found=$(dpkg --print-architecture 2>/dev/null || uname -m)
    [ "$found" = "$(value architecture)" ] ||
        die $REFUSED "cannot install on $found: the kit is for $(value architecture)"
    # shellcheck source=/dev/null
    found=$(. "$OS_RELEASE" && printf '%s %s' "$ID" "${VERSION_CODENAME:-unknown}")
    SUITE=${found#debian }
    [[ $found == debian\ * && " $(value suites) " == *" $SUITE "* ]] ||
        die $REFUSED "cannot install on $found: the kit is for debian $(value suites)" "bring a kit for this system"
}

# room FOLDER BYTES: free space, where the folder is or will be.
room() {
    local folder=$1 free
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df --output=avail -B1 "$folder" | tail -n 1)
    [ "$free" -ge "$2" ] ||
        die $REFUSED "cannot install: $folder has $(megabytes "$free") free, expected $(megabytes "$2")" "make room there"
}

# --- 3. a copy that nobody changes ------------------------------------------------------------------------------------

# After this $COPY is a verified copy, and the stick is not read again.
stage() {
    local source
    source=$(readlink -f -- "$KIT")
    if [[ $source == "$KITS"/* ]]; then use_kept "$source"; else bring "$source"; fi
    say "Skerry $VERSION of $(value built): signed with your key, all files good"
}

# Started from the copy, as skerry-setup: there is no stick.
use_kept() {
    HEAD=$1
    verify_head
    check_machine
    [ "$1" = "$KITS/$KIT_SHA256" ] || die $UNVERIFIED "cannot use $1: it is not the folder of its manifest, $KIT_SHA256"
    verify_files "$1" || reject "$1" "run the install.sh of the stick: it makes a new copy"
    COPY=$1
}

# From the stick: first the three files that say whose kit it is, then, if this copy is not there yet, the others.
bring() {
    local file
    HEAD=$KITS/incoming.partial
    trap 'rm -rf "$WORK" "$KITS/incoming.partial"' EXIT
    rm -rf "$HEAD"
    mkdir -p "$HEAD"
    for file in manifest manifest.asc kit.gpg; do
        if [ -f "$1/$file" ] && [ ! -L "$1/$file" ]; then head -c 9000000 <"$1/$file" >"$HEAD/$file"; fi
    done
    verify_head
    check_machine
    COPY=$KITS/$KIT_SHA256
    if [ -d "$COPY" ]; then
        if verify_files "$COPY"; then
            HEAD=$COPY
            return
        fi
        say "WARNING: the copy on the disk is not what was signed; making it anew:"
        head -n 1 "$WORK/problems"
        rm -rf "$COPY"
    fi
    check_source "$1"
    copy_files "$1"
    say "Verifying the copy"
    verify_files "$HEAD" || reject "$1" "copy the kit to the stick again; if it stays so, use another stick"
    sync -f "$HEAD" # or after a power cut the name could be there, and files empty
    mv -T "$HEAD" "$COPY"
    HEAD=$COPY
}

# Before the long copying: is all there, and nothing else?
check_source() {
    inspect "$1" \( "${DROPPINGS[@]}" \) -prune -o || reject "$1" "copy the kit to the stick again, into an empty folder"
    room "$KITS" $(($(total "$WORK/sizes") + ROOM_TO_INSTALL))
}

# inspect FOLDER [FIND'S WORDS THAT SKIP]: are there plain files under the listed names, and no others? If not, $WORK/problems
# says which. The names themselves are looked at first: one may hold a line feed.
inspect() {
    local skip=("${@:2}") names=(-regextype posix-extended ! -regex "\./$PART(/$PART)*")
    (cd "$1" && find . -mindepth 1 "${skip[@]}" ! -type f ! -type d -printf '%P\0') >"$WORK/links"
    (cd "$1" && find . -mindepth 1 "${skip[@]}" "${names[@]}" -printf '%P\0') >"$WORK/odd"
    { each "$WORK/links" "is no plain file" && each "$WORK/odd" "is no name of a kit"; } >"$WORK/problems"
    [ ! -s "$WORK/problems" ] || return 1
    (cd "$1" && find . -mindepth 1 "${skip[@]}" -type f -printf '%s %P\n') >"$WORK/sizes"
    cut -d' ' -f2- "$WORK/sizes" | LC_ALL=C sort >"$WORK/there"
    { cat "$WORK/list" && printf 'manifest\nmanifest.asc\n'; } | LC_ALL=C sort >"$WORK/expected"
    LC_ALL=C comm -13 "$WORK/there" "$WORK/expected" | sed 's/$/ is missing/' >"$WORK/problems"
    LC_ALL=C comm -23 "$WORK/there" "$WORK/expected" | sed 's/$/ is not in the manifest/' >>"$WORK/problems"
    cmp -s "$WORK/there" "$WORK/expected" && [ -s "$WORK/there" ]
}

# each FILE WORDS: a line for each of the names in a file, which end with a zero.
each() {
    local name
    while IFS= read -r -d '' name; do printf '%q %s\n' "$name" "$2"; done <"$1"
}

total() { awk '{ sum += $1 } END { printf "%.0f", sum }' "$1"; }

# Copy what the manifest lists and nothing else; -P: a link that appears meanwhile is not followed.
copy_files() {
    local part
    cut -d/ -f1 "$WORK/list" | LC_ALL=C sort -u >"$WORK/parts"
    while read -r part; do
        grep -E "^$part(/|\$)" "$WORK/list" >"$WORK/part"
        [ ! -d "$1/$part" ] || say "Copying $part: $(wc -l <"$WORK/part") files, $(megabytes "$(size_of_part "$part")")"
        (cd "$1" && xargs -d '\n' cp --parents -P -t "$HEAD" -- <"$WORK/part") 2>"$WORK/output" ||
            die $FAILED "cannot copy the kit: $(head -n 1 "$WORK/output")" "is the stick still in? If so, try another"
    done <"$WORK/parts"
    find "$HEAD" -type d -exec chmod 0755 {} +
    find "$HEAD" -type f -exec chmod 0644 {} +
    chmod 0755 "$HEAD/install.sh"
}

size_of_part() {
    grep -E "^[0-9]+ $1/" "$WORK/sizes" >"$WORK/part-sizes"
    total "$WORK/part-sizes"
}

# verify_files FOLDER: is every file there with its digest, and nothing else? If not, $WORK/problems says what.
verify_files() {
    inspect "$1" || return 1
    # Few files at a time: what each sha256sum says then fits into one write, and lines do not mix.
    (cd "$1" && tr '\n' '\0' <"$WORK/list" | xargs -0 -n 8 -P "$(nproc)" sha256sum --) | LC_ALL=C sort >"$WORK/found"
    LC_ALL=C sort "$WORK/signed" >"$WORK/digests"
    LC_ALL=C comm -13 "$WORK/found" "$WORK/digests" | cut -c67- | sed 's/$/ was changed/' >"$WORK/problems"
    # The answer is this comparison; whatever failed before it makes it fail too.
    cmp -s "$WORK/found" "$WORK/digests" && [ -s "$WORK/found" ]
}

# reject FOLDER NEXT: name what is wrong and end.
reject() {
    head -n 5 "$WORK/problems" | sed 's/^/    /' >&2
    die $UNVERIFIED "cannot use $1: $(wc -l <"$WORK/problems") of its files are not what was signed, see above" "$2"
}

# --- 4. Python and Ansible, from the copy -----------------------------------------------------------------------------

# Point an apt of our own at the copy. The roles use the same file; the machine's own sources are not looked at.
point_apt() {
    local apt=$STATE/apt
    [ "$(cat "$apt/kit" 2>/dev/null)" != "$KIT_SHA256" ] || return 0
    rm -rf "$apt"
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
    cat >"$apt/apt.conf" <<END
// Written by Skerry's install.sh: with APT_CONFIG=$apt/apt.conf apt knows the verified kit and no other source.
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/sources";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
APT::Install-Recommends "false";
DPkg::Options { "--force-confdef"; "--force-confold"; };
DPkg::Lock::Timeout "300";
END
    printf 'Types: deb\nURIs: file:%s\nSuites: ./\nSigned-By: %s\n' \
        "$COPY/debs/$SUITE" "$COPY/kit.gpg" >"$apt/sources/skerry-kit.sources"
    quietly "read the kit's packages" apt-get -qq update
    printf '%s\n' "$KIT_SHA256" >"$apt/kit"
}

install_python() {
    local packages=(python3 python3-apt)
    export APT_CONFIG=$STATE/apt/apt.conf DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    if [ -n "$INVENTORY" ]; then packages+=(openssh-client); fi
    point_apt
    # A run that was cut off in the midst of dpkg leaves packages half configured.
    [ -z "$(dpkg --audit)" ] || quietly "finish an interrupted installation" dpkg --configure -a --force-confdef --force-confold
    if ! are_installed "${packages[@]}"; then
        say "Installing Python"
        quietly "install Python" apt-get -qq -o Dpkg::Use-Pty=0 install --no-remove "${packages[@]}"
    fi
    TAG=$(/usr/bin/python3 -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    [ -f "$COPY/wheels/ansible-$TAG.txt" ] || die $REFUSED "cannot use $(/usr/bin/python3 -V): the kit has no wheels for $TAG"
}

are_installed() {
    [ "$(dpkg-query -Wf '${db:Status-Status}\n' "$@" 2>/dev/null | grep -cx installed)" -eq $# ]
}

# A virtual environment under a name that says what is in it, then one link: there is an old one or a new one.
install_ansible() {
    local name venv pip=("$COPY"/wheels/pip-*.whl)
    name=ansible-$({ cat "$COPY/wheels/ansible-$TAG.txt" && /usr/bin/python3 -VV; } | sha256sum | cut -c1-12)
    venv=$OPT/$name
    if [ ! -e "$venv/complete" ]; then
        say "Installing Ansible"
        rm -rf "$venv"
        mkdir -p "$OPT"
        quietly "make a virtual environment" /usr/bin/python3 -m venv --without-pip "$venv"
        quietly "install Ansible" "$venv/bin/python" "${pip[0]}/pip" install --quiet --disable-pip-version-check --no-cache-dir \
            --root-user-action ignore --no-index --find-links "$COPY/wheels" --no-deps --require-hashes \
            -r "$COPY/wheels/ansible-$TAG.txt"
        sync -f "$venv"
        touch "$venv/complete"
    fi
    point_link "$OPT/ansible" "$name"
    find "$OPT" -maxdepth 1 -name 'ansible-*' ! -name "$name" -exec rm -rf {} +
}

# point_link LINK TARGET: by rename, so that there is always one of the two.
point_link() {
    [ "$(readlink "$1" 2>/dev/null)" != "$2" ] || return 0
    ln -sfn "$2" "$1.new"
    mv -T "$1.new" "$1"
}

# --- 5. the playbooks -------------------------------------------------------------------------------------------------

# What the operator gave is kept, so that later runs need no stick.
keep_for_later() {
    mkdir -p "$ETC"
    if [ -f "$ETC/kit.gpg" ] && ! cmp -s "$COPY/kit.gpg" "$ETC/kit.gpg"; then
        say "Note: kits were signed with another key before, $(digest_of "$ETC/kit.gpg")"
    fi
    cmp -s "$COPY/kit.gpg" "$ETC/kit.gpg" || install -m 0644 "$COPY/kit.gpg" "$ETC/kit.gpg"
    mkdir -p "$(dirname "$SETUP")"
    point_link "$SETUP" "$COPY/install.sh"
    if [ -z "$SITE" ] || [ -n "$INVENTORY" ]; then return; fi
    install -m 0600 "$SITE" "$ETC/.site.yaml.new"
    mv "$ETC/.site.yaml.new" "$ETC/site.yaml"
}

# play PLAYBOOK OPTION...: run one from the copy. Python must write nothing there, or the copy is no longer the signed one.
play() {
    local book=$1 site=${SITE_FILE:-} code=0
    shift
    set -- -e "skerry_kit=$COPY" -e "skerry_version=$VERSION" -e "skerry_kit_sha256=$KIT_SHA256" \
        -e "skerry_kit_key=$KEY_SHA256" "$@"
    if [ -n "$site" ]; then set -- -e "@$site" "$@"; fi
    if [ -n "$INVENTORY" ]; then set -- -i "$INVENTORY" "$@"; else set -- -i localhost, -c local "$@"; fi
    (
        # Neither stands where the run itself lays a new file system over: in the copy, or beside the log.
        cd /
        if [ -n "${KEEP_LOG:-}" ]; then export ANSIBLE_LOG_PATH=$WORK/ansible.log; fi
        export ANSIBLE_CONFIG=$COPY/playbooks/ansible.cfg PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 HOME=${HOME:-/root}
        "$OPT/ansible/bin/ansible-playbook" "$@" "$COPY/playbooks/$book" </dev/null 9>&-
    ) || code=$?
    if [ -n "${KEEP_LOG:-}" ] && [ -f "$WORK/ansible.log" ]; then cat "$WORK/ansible.log" >>"$LOG"; fi
    [ "$code" -eq 0 ] || die $FAILED "the playbook $book failed (ansible-playbook ended with $code), see above" \
        "mend what it says, then run this again: what is done already is not done twice"
}

choose_play() {
    local options=() book=site.yml
    if [ -n "$TAGS" ]; then options+=(--tags "$TAGS"); fi
    if [ -n "$CHECK" ]; then options+=(--check --diff); fi
    if [ -n "$INVENTORY" ]; then book=fleet.yml; fi
    if [ -n "$REPORT" ]; then book=check.yml; fi
    if [ -n "$RESET" ]; then
        book=reset.yml
        options+=(-e "reset_mode=$RESET" -e "reset_data=$DATA" -e "reset_confirm=$CONFIRM")
    fi
    play "$book" "${options[@]}"
    if [ "$book" != reset.yml ] && [ -z "$REPORT$CHECK" ]; then
        forget_old_kits
        if [ -z "$INVENTORY" ]; then finish; fi
    fi
    if [ "$RESET$DATA" = uninstallwipe ] && [ -z "$INVENTORY" ]; then rm -rf "$OPT"/ansible* "$STATE/apt" "$SETUP" "$ETC/kit.gpg"; fi
}

# The copies before the last one make room.
forget_old_kits() {
    find "$KITS" -mindepth 1 -maxdepth 1 ! -path "$COPY" -printf '%T@ %p\n' | sort -rn | sed 1d | cut -d' ' -f2- | xargs -rd '\n' rm -rf
}

finish() {
    say "Done. Skerry $VERSION is on this machine."
    printf '\n  models   %s\n  log      %s\n' "$(ls -m "$STATE/models" 2>/dev/null || true)" "$LOG"
    printf '  prove    skerry-setup --report\n  ask      skerry ask "What is the capital of France?"\n'
    if [ -r "$GUARD" ]; then
        printf '\n  LOG IN ANEW within %d minutes, from another terminal, by SSH or on the console:\n' \
            $((($(<"$GUARD") - $(date +%s)) / 60))
        printf '  otherwise SSH, firewall and passwords go back to what they were.\n'
    fi
}

# --- all of it --------------------------------------------------------------------------------------------------------

# Sourced, this file only defines functions: that is how tests/kit/ tries the parts without a machine to spoil.
begin() {
    umask 022
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    unset CDPATH GREP_OPTIONS ANSIBLE_CONFIG PYTHONPATH PYTHONHOME
    WORK=$(mktemp -d "$RUN/skerry-install.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
    trap 'die $FAILED "failed in line $LINENO: $BASH_COMMAND" "run it again; if it stays so, send the log"' ERR
    trap 'die 130 "interrupted" "run it again: it goes on where this ended"' INT TERM HUP
}

main() {
    parse "$@"
    [ "$(id -u)" -eq 0 ] || die $DENIED "cannot install: you are $(id -un), expected root" "sudo ./install.sh ..."
    begin
    # Nobody else may hold it: a lock needs no more than the right to read.
    (umask 077 && : >>"$RUN/skerry-install.lock") && chmod 0600 "$RUN/skerry-install.lock"
    exec 9>"$RUN/skerry-install.lock"
    flock -n 9 || die $REFUSED "cannot start: another install.sh is under way" "wait until it ends"
    if [ -z "$CHECK$REPORT" ]; then
        install -d -m 0750 "$(dirname "$LOG")"
        (umask 077 && printf '\n--- %s\n' "$(date -u '+%Y-%m-%dT%H:%M:%SZ')" >>"$LOG")
        KEEP_LOG=yes
    fi
    if [ -n "$SITE" ]; then SITE=$(readlink -f -- "$SITE"); fi
    if [ -n "$INVENTORY" ]; then INVENTORY=$(readlink -f -- "$INVENTORY"); fi
    stage
    install_python
    install_ansible
    if [ -z "$CHECK$REPORT" ]; then keep_for_later; fi
    if [ -n "$PREPARE" ]; then
        forget_old_kits
        say "Prepared. The verified kit is in"
        printf '%s\n' "$COPY"
        return
    fi
    SITE_FILE=$SITE
    if [ -z "$SITE$INVENTORY" ] && [ -f "$ETC/site.yaml" ]; then SITE_FILE=$ETC/site.yaml; fi
    say "Running Ansible"
    choose_play
}

# The whole file has been read before the first command runs, whatever happens to the stick meanwhile.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
    exit
fi
