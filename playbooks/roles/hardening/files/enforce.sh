#!/bin/bash
# Bring into force what the role hardening has put on the disk. Safe to run at any time. Names on stdout what it changes
# for good; loading what is loaded already is no change.
set -euo pipefail

container=
if systemd-detect-virt --container --quiet; then container=yes; fi

systemctl daemon-reload

# A password of root, if there is one, grows old (ANSSI-BP-028 R31).
if [ "$(getent shadow root | cut -d: -f5)" != 365 ]; then
    echo "root's password lasts 365 days"
    chage --maxdays 365 root
fi

# What a box must have running, whatever presets of the machine or an administrator said when it was installed.
for unit in ssh auditd audit-rules apparmor acct usbguard; do
    case $(systemctl is-enabled "$unit.service" 2>/dev/null || true) in
    disabled | masked)
        echo "$unit starts at every boot"
        systemctl --quiet unmask "$unit.service"
        systemctl --quiet enable "$unit.service"
        ;;
    esac
done
# Its rules are files; nobody asks usbguard over D-Bus, and nobody shall.
if [ "$(readlink /etc/systemd/system/usbguard-dbus.service)" != /dev/null ]; then
    echo "usbguard-dbus is off"
    systemctl stop usbguard-dbus.service 2>/dev/null || true
    systemctl --quiet disable usbguard-dbus.service 2>/dev/null || true
    systemctl --quiet mask usbguard-dbus.service
fi
if ! systemctl --quiet is-active ssh.service; then
    echo "ssh runs"
    systemctl start ssh.service
fi

# Kernel settings. A container may set those of its own network, the others belong to its host.
if [ -n "$container" ]; then
    /lib/systemd/systemd-sysctl --prefix=/net /etc/sysctl.d/90-skerry.conf
else
    /lib/systemd/systemd-sysctl /etc/sysctl.d/90-skerry.conf
fi

# A driver that is loaded already stays until nobody uses it: what hangs on it now may be in use.
if [ -z "$container" ]; then
    for module in uas usb-storage firewire-ohci firewire-core; do
        if modprobe --dry-run "$module" 2>/dev/null || [ -e /run/skerry-usb-window ]; then continue; fi
        modprobe --remove "$module" 2>/dev/null || true
    done
fi

# Where /tmp is memory already its options change now, else at the next boot: hiding files in use would do harm.
systemctl --quiet enable tmp.mount
if findmnt --types tmpfs --mountpoint /tmp >/dev/null; then
    mount -o remount,nosuid,nodev,noexec /tmp
fi
systemctl restart systemd-remount-fs.service
systemd-tmpfiles --create /etc/tmpfiles.d/skerry-hardening.conf

if [ -z "$container" ]; then
    # With a policy that it cannot read usbguard does not start, and the kernel would let everything in at the next boot.
    since=$(systemctl show -P ActiveEnterTimestamp usbguard.service)
    if [ -z "$since" ] || [ -n "$(find /etc/usbguard -type f -newermt "$since")" ]; then
        echo "usbguard follows its rules"
        systemctl restart usbguard.service
    fi
    # What is blocked must be blocked from the first program on that loads drivers.
    for initrd in /boot/initrd.img-*; do
        if [ -e "$initrd" ] && [ -n "$(find /etc/modprobe.d -type f -newer "$initrd")" ]; then
            echo "$initrd blocks the same drivers"
            update-initramfs -u -k "${initrd#*/initrd.img-}" >/dev/null
        fi
    done
    systemctl --quiet is-active auditd || systemctl start auditd
    # Immutable rules are read again at the next boot.
    auditctl -s | grep -q '^enabled 2' || augenrules --load >/dev/null
fi
