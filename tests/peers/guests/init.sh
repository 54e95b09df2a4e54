#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# The first process of a guest. The host sends jobs over the terminal that CHANNEL names, this runs
# them one after the other. What is meant for the host begins with TOKEN at the start of a line, all
# else is a job's output:
#
#   host: the script in base64, a piece a line, then "."     guest: TOKEN +  for each piece
#   guest: the job's output and errors, as they come, then   guest: TOKEN exit STATUS
#
# CHANNEL and TOKEN come from the kernel's command line. The kernel's own messages are elsewhere.

export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in /lib/modules/*; do insmod "$module"; done
# What waits on a disk for so long is printed with its stack.
[ ! -e /proc/sys/kernel/hung_task_timeout_secs ] || echo 20 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/vm/overcommit_memory

exec <>"/dev/$CHANNEL" >&0 2>&1 # opened once: not every kind of port lets itself be opened twice
[ ! -t 0 ] || stty raw -echo
[ -e /~ ] || echo "the guest has too little memory for its initramfs"
say() { printf '\n%s %s\n' "$TOKEN" "$*"; }

[ -e /~ ] && cd /tmp || exit
# In a process of its own: this one gets the end of whatever a job has left behind, and a shell that
# hears of a child's end while it reads a line forgets what it has read of it.
(
    say up
    while true; do
        : >job.base64
        while read -r piece && [ "$piece" != . ]; do
            echo "$piece" >>job.base64
            say +
        done
        base64 -d job.base64 >job
        TOKEN='' sh ./job </dev/null
        say exit $?
    done
)
