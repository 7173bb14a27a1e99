#!/bin/busybox sh
# The first process of a guest that `cargo qemu` boots. With a command it runs
# that between two marks on the console, which nobody can guess; without, it
# leaves the user at a shell. Then the guest powers off.

/bin/busybox mkdir -p /bin /dev /proc /root /sbin /sys /tmp /usr/bin /usr/sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
export HOME=/root
. /undercroft/terminal
cd /root || exit
hostname "$(cat /undercroft/name)" 2>/dev/null

tty=/dev/ttyAMA0
[ -c $tty ] || tty=/dev/console

# `poweroff`, `reboot` and `halt` ask the first process by these signals.
# Then the kernel has no last word on a console that may be a command's.
end() {
    echo 0 >/proc/sys/kernel/printk
    /bin/busybox "$1" -f
}
trap 'end poweroff' USR2
trap 'end reboot' TERM
trap 'end halt' USR1

if [ -f /undercroft/command ]; then
    # From here on the kernel is silent unless it dies. `stty` waits until
    # what was said before has left, so that no line of it cuts the mark; then
    # bytes pass unchanged.
    dmesg -n 1
    exec <$tty >$tty 2>&1
    stty -opost -echo
    printf '\n%s begin\n' "$(cat /undercroft/mark)"
    setsid sh -c "$(cat /undercroft/command)" </dev/null &
    wait $!
    status=$?
    printf '%s end %d\n' "$(cat /undercroft/mark)" $status
    stty sane
else
    [ -z "$rows" ] || stty rows "$rows" cols "$cols" <$tty
    setsid sh -c "exec sh -l <$tty >$tty 2>&1" &
    wait $!
    stty sane <$tty
fi
end poweroff
