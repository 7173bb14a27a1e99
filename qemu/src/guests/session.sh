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
    # A kernel that dies resets the guest at once, which ends the run.
    echo -1 >/proc/sys/kernel/panic
    stty -opost -echo
    printf '\n%s begin\n' "$(cat /undercroft/mark)"
    # Read from its file: an argument would be limited to 128 KiB.
    sh -c '. /undercroft/command' </dev/null 2>&1
    status=$?
    printf '%s end %d\n' "$(cat /undercroft/mark)" $status
else
    [ -z "$rows" ] || stty rows "$rows" cols "$cols"
    echo "A shell in guest $(cat /undercroft/name): \`poweroff\` ends it, Ctrl-a x leaves QEMU."
    sh -l
fi
# Waits until all has been said, and keeps the kernel from a last word.
stty sane
echo 0 >/proc/sys/kernel/printk
exec busybox poweroff -f
