#!/bin/sh
# PID 1 of a User-Mode-Linux guest: an NFS server, or a client of one, and an agent that takes orders.
#
# The guest's root is this machine's, read-only; what must be written is on tmpfs. The kernel hands the variables of
# its command line on: ROLE=server|client ADDRESS= SERVER= AGENT= PYTHON= REBOOTED=
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/shm
for place in /run /var/lib/nfs /mnt /var/tmp /dev/shm; do mount -t tmpfs tmpfs $place; done
mkdir -p /run/lock /run/rpcbind /run/sendsigs.omit.d /mnt/v3 /mnt/v4 /mnt/export /mnt/tmp /mnt/mod/lib
mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/rpc_pipefs
for file in etab rmtab xtab state; do : >/var/lib/nfs/$file; done
chown -R statd /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/state 2>/dev/null
export TMPDIR=/mnt/tmp

# The kernel asks for its modules by this program; Debian keeps UML's where modprobe does not look.
ln -s /usr/lib/uml/modules /mnt/mod/lib/modules
printf '#!/bin/sh\nexec modprobe -d /mnt/mod "$@"\n' >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe

hostname "$NAME"
ip link set lo up
ip link set vec0 up
ip addr add "$ADDRESS/24" dev vec0
rpcbind -w

serve() {
    mount -t ext4 /dev/ubda /mnt/export
    /run/modprobe nfsd
    mount -t nfsd nfsd /proc/fs/nfsd
    mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
    echo 3 >/proc/sys/fs/nfs/nlm_timeout
    echo 3 >/proc/sys/fs/nfs/nlm_grace_period
    rpc.statd --no-notify
    exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=0,insecure '*:/mnt/export'
    echo 10 >/proc/fs/nfsd/nfsv4gracetime
    echo 10 >/proc/fs/nfsd/nfsv4leasetime
    rpc.nfsd 8
    rpc.mountd
    # At the first start nobody has a lock to reclaim, and nobody need wait for that.
    [ -n "$REBOOTED" ] || echo Y >/proc/fs/nfsd/v4_end_grace
}

use() {
    for module in nfs nfsv3 nfsv4; do /run/modprobe $module; done
    rpc.statd --no-notify
    until mount -t nfs -o vers=3 "$SERVER:/mnt/export" /mnt/v3; do sleep 0.2; done
    until mount -t nfs -o vers=4.2 "$SERVER:/" /mnt/v4; do sleep 0.2; done
}

case $ROLE in
server) serve ;;
client) use ;;
esac
"$PYTHON" "$AGENT" /mnt/tmp/agent 7000 &
while :; do wait; sleep 3600 & wait $!; done
