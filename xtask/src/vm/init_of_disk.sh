#!/bin/sh
# PID 1 of a test VM until the root on its disk takes over: modules, files for that root.
export PATH=/usr/bin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module.ko" || echo "init: no $module"
done < /modules/order
mount -t ext4 /dev/vda /disk
cp -a /put/. /disk/
umount /dev /sys /proc
exec switch_root /disk /sbin/init
