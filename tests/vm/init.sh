#!/busybox/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# /init of the guest: brings real DRBD devices into one state after another
# and, in each, writes down what the probe, the C program and DRBD's own tools
# say. It judges nothing; tests/vm/test_vm.py does.
#
# A record is a command that was run. For number N there are three files,
# N (one line: KIND STATE CODE COMMAND...), N.out and N.err. At the end all of
# them go out through the second serial port, as a tar file. If that does not
# come, something here failed, and the console says what. (To fork is what
# costs time in an emulated machine: hence no timeout for each command.)

PATH=/busybox:/usr/sbin:/usr/bin
export PATH
PORT=/dev/ttyS1
LIMIT_S=120 # for all; it takes about 6, by the guest's clock

conf=/etc/drbd.conf
state=booting
number=0
path=$PATH

stop() {
    echo "$*"
    sync
    reboot -f
}

fail() { stop "FAILED in state $state: $*"; }

# run COMMAND...: a step that must succeed.
run() {
    echo "+ $*"
    "$@" </dev/null || fail "$* (exit $?)"
}

# record KIND COMMAND...
record() {
    kind=$1
    shift
    number=$((number + 1))
    echo "  $kind: $*"
    PATH=$path "$@" </dev/null >/records/$number.out 2>/records/$number.err
    echo "$kind $state $? $*" >/records/$number
}

# probe_with FOLDER SHELL DEVICE: as if these were a host's only tools.
probe_with() {
    path=$1
    record probe "$1/$2" /hotplug/block-drbd-probe "$3"
    path=$PATH
}

# probe DEVICE...: with the shell and tools of Debian.
probe() {
    for device; do
        probe_with /usr/bin dash "$device"
    done
}

# probe_both DEVICE...: with those of busybox too.
probe_both() {
    for device; do
        probe "$device"
        probe_with /busybox sh "$device"
    done
}

# disk DEVICE...: the C core's device layer.
disk() {
    for device; do record disk /drbd_disk "$device"; done
}

# tools: what tests/support/drbd_tools.py has stand-ins for.
tools() {
    for call in 'drbdadm sh-dev all' 'drbdadm sh-resource all' \
        'drbdadm sh-dev r0' 'drbdadm sh-dev r1' \
        'drbdadm cstate r0' 'drbdadm role r0' 'drbdadm dstate r0' \
        'drbdsetup show r0' 'drbdsetup /dev/drbd0 show' \
        'drbdsetup status r0'; do
        # shellcheck disable=SC2086 # words
        record tool $call
    done
}

# enter STATE: what follows is recorded under this name.
enter() {
    state=$1
    echo "=== $state ($(cut -d' ' -f1 /proc/uptime) s)"
}

# until_is WANTED COMMAND...: ask again and again, for a while.
until_is() {
    wanted=$1
    shift
    tries=0
    while answer=$("$@" 2>&1); [ "$answer" != "$wanted" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || fail "$*: $answer, not $wanted"
        usleep 100000
    done
}

connected() {
    until_is Connected drbdadm cstate r0
    until_is Connected drbdadm cstate r1
    until_is UpToDate/UpToDate drbdadm dstate r0
}

# What DRBD needs; in some kernels a part of it is built in.
load_helpers() {
    for module in crc32c_generic libcrc32c lru_cache; do
        [ ! -e "/modules/$module.ko" ] || run insmod "/modules/$module.ko"
    done
}

/busybox/busybox mkdir -p /proc
/busybox/busybox mount -t proc proc /proc
/busybox/busybox --install -s /busybox
mkdir -p /records /sys /dev /tmp /run /var/lock /var/lib/drbd
ln -s /run /var/run
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1
run stty -F "$PORT" raw -echo
(
    sleep "$LIMIT_S"
    stop "FAILED: not done in $LIMIT_S s"
) &
hostname lab
run ip link set lo up

enter no-module
load_helpers
run insmod /modules/brd.ko rd_nr=3 rd_size=8192
dd if=/dev/zero of=/tmp/image bs=4096 count=16 2>/dev/null
mknod /tmp/drbd0 b 147 0
probe /dev/ram2 /tmp/image /dev/drbd0 /tmp/drbd0
disk /tmp/drbd0
record tool drbdadm sh-dev all

enter never-up
run insmod /modules/drbd.ko
record fact uname -r
record fact cat /sys/module/drbd/version
probe /dev/drbd0
disk /dev/drbd0

enter secondary
for n in 0 1; do run drbdadm create-md --force "r$n"; done
for n in 0 1; do run drbdadm up "r$n"; done
until_is Connected drbdadm cstate r0
run drbdadm new-current-uuid --clear-bitmap r0/0
connected
probe /dev/drbd0
disk /dev/drbd0

enter protocol-A
run drbdadm primary r0
until_is Primary/Secondary drbdadm role r0
until_is Secondary/Primary drbdadm role r1
ln -s /dev/drbd0 /dev/vdisk
mknod /tmp/drbd7 b 147 7
record fact cat /proc/drbd
probe_both /dev/drbd0 /dev/vdisk /dev/ram2 /tmp/image
probe /dev/drbd1 /dev/ram0 /dev/nothing /dev/drbd7 /tmp/drbd7 /dev/console /tmp
disk /dev/drbd0 /dev/drbd1 /dev/ram2 /tmp/image /dev/drbd7 /tmp/drbd7
tools
record fact cat /proc/drbd

enter standalone
run drbdadm disconnect r0
until_is StandAlone drbdadm cstate r0
until_is WFConnection drbdadm cstate r1
probe_both /dev/drbd0
probe /dev/drbd1
disk /dev/drbd0
tools

enter protocol-C
run drbdadm disconnect r1
sed -i 's/protocol A;/protocol C;/' "$conf"
for n in 1 0; do run drbdadm connect "r$n"; done
connected
probe_both /dev/drbd0
probe /dev/drbd1
disk /dev/drbd0
tools

# The resource is as it was, only its tools are of no use.
enter bad-configuration
cp "$conf" /tmp/good.conf
echo 'resource r2 { on lab { devise /dev/drbd2; } }' >>"$conf"
probe_both /dev/drbd0
probe /dev/drbd7 /dev/ram2
record tool drbdadm sh-dev all
cp /tmp/good.conf "$conf"

enter no-helper
mv /usr/lib/drbd/drbdadm-84 /tmp/
probe /dev/drbd0 /dev/ram2
record tool drbdadm sh-dev all
mv /tmp/drbdadm-84 /usr/lib/drbd/

enter no-drbdadm
mv /usr/sbin/drbdadm /tmp/
probe /dev/drbd0 /dev/ram2
mv /tmp/drbdadm /usr/sbin/

enter down
mknod /tmp/drbd0-kept b 147 0
run drbdadm down r0
probe_both /dev/drbd0
disk /dev/drbd0 /tmp/drbd0-kept
tools

tar -C /records -czf "$PORT" . || fail 'tar'
stop finished
