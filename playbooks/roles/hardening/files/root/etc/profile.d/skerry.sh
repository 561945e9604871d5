# Skerry, role hardening (ANSSI-BP-028 R32, R36; Lynis AUTH-9328, SHLL-6220, KRNL-5820).
umask 027
ulimit -c 0
TMOUT=900
readonly TMOUT
export TMOUT
