#!/bin/busybox sh
# The user's session on the guest's console. With a command it runs that
# between two marks, which nobody can guess; without, it is a shell. Then the
# guest powers off.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
. /undercroft/terminal
cd /root || exit

if [ -f /undercroft/command ]; then
    # From here on the kernel is silent unless it dies. `stty` waits until
    # what was said before has left, so that no line of it cuts the mark; then
    # bytes pass unchanged.
    dmesg -n 1
    stty -opost -echo
    printf '\n%s begin\n' "$(cat /undercroft/mark)"
    sh -c "$(cat /undercroft/command)" </dev/null 2>&1
    status=$?
    printf '%s end %d\n' "$(cat /undercroft/mark)" $status
else
    [ -z "$rows" ] || stty rows "$rows" cols "$cols"
    sh -l
fi
# Waits until all has been said, and keeps the kernel from a last word.
stty sane
echo 0 >/proc/sys/kernel/printk
exec busybox poweroff -f
