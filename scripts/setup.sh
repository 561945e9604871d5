#!/usr/bin/env bash
# Set up a virtual environment and what it needs of Debian's packages. Called by make; safe to run again.
#   setup.sh station   build and run models          setup.sh dev    test too, containers included
#   setup.sh kit       build kits                    setup.sh vm     build images, test in virtual machines
#   setup.sh peer      the llama.cpp that `make bench` compares with
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# The newest Python that Skerry supports and that can make virtual environments.
find_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null || continue
        printf '%s\n' "$candidate"
        return 0
    done
    return 1
}

install_packages() {
    local as_root=()
    command -v apt-get >/dev/null || die "cannot install $*: apt-get is not here. Install them by hand, then run make again."
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "cannot install $*: neither root nor sudo. Ask an administrator to install them, then run make again."
        as_root=(sudo)
    fi
    say "installing $*"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

make_venv() {
    local venv=$1 python
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null && return 0
    python=$(find_python) || { install_packages python3 python3-venv; python=$(find_python); } ||
        die "found no Python 3.11 to 3.13 with venv, expected one; Debian 12 and 13 have it as python3-venv"
    say "making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
}

# Install the packages of "command:package" pairs whose command is missing.
need_commands() {
    local pair missing=()
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

for_kits=(gpg:gpg gpg-agent:gpg-agent gpgv:gpgv apt-ftparchive:apt-utils
    /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring)
for_containers=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container ssh:openssh-client ssh-keygen:openssh-client
    socat:socat nft:nftables ip:iproute2)
for_machines=(qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils /usr/share/OVMF:ovmf mcopy:mtools mkfs.vfat:dosfstools
    sfdisk:fdisk mke2fs:e2fsprogs /usr/lib/systemd/boot/efi/systemd-bootx64.efi:systemd-boot-efi)

case "${1:-}" in
station)
    make_venv .venv
    say "installing the station's packages"
    .venv/bin/python -m pip install --quiet --editable '.[station]'
    ;;
dev)
    make_venv .venv
    need_commands curl:curl strace:strace "${for_kits[@]}" "${for_containers[@]}"
    say "installing the developers' packages"
    .venv/bin/python -m pip install --quiet --editable '.[station,dev]'
    mkdir -p .venv/.stamps && touch .venv/.stamps/station
    ;;
kit)
    need_commands "${for_kits[@]}"
    ;;
vm)
    need_commands "${for_kits[@]}" "${for_containers[@]}" "${for_machines[@]}"
    ;;
peer)
    make_venv .venv-peer
    need_commands g++:g++ cmake:cmake make:make
    say "building llama.cpp from its source package; this takes some 12 minutes on 2 cores"
    CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON" CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" \
        .venv-peer/bin/python -m pip install --quiet --no-binary llama-cpp-python 'llama-cpp-python==0.3.36'
    ;;
*)
    die "unknown set-up '${1:-}': expected station, dev, kit, vm or peer"
    ;;
esac
