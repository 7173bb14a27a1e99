#!/bin/busybox sh
# The first program of a guest that `cargo qemu` boots: makes the usual places,
# then becomes busybox's init, which starts `session.sh` on the console and
# knows what `poweroff` and `reboot` mean.

/bin/busybox mkdir -p /bin /dev /proc /root /sbin /sys /tmp /usr/bin /usr/sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox --install -s
/bin/busybox hostname "$(/bin/busybox cat /undercroft/name)"

tty=ttyAMA0
[ -c /dev/$tty ] || tty=console
echo "$tty::once:/undercroft/session" >/etc/inittab
# By this name no security module takes it for a whole system, and without an
# output its messages do not come between a command's.
/bin/busybox ln -s /bin/busybox /undercroft/init
exec /undercroft/init </dev/null >/dev/null 2>&1
