"""Hosts to test on: Debian machines that boot, run commands and answer SSH, and that no network reaches.

`roots` builds and caches bare Debian file systems, `nspawn` boots one as a container within a second, and `ssh` speaks
to the sshd inside. All raise `HostError`, whose text names the machine and shows the tail of what it printed.
"""
