#!/bin/sh
# Runs one job after another from the second serial port. A job is one line, `MARK BASE64-OF-A-SHELL-SCRIPT`; what the
# script says is followed by a line `MARK STATUS`.
stty -F /dev/ttyS1 raw -echo
exec 3<> /dev/ttyS1
read -r up _ < /proc/uptime
echo "up $up $(uname -r)" >&3
while read -r mark job <&3; do
    echo "$job" | base64 -d > /run/job
    sh /run/job < /dev/null >&3 2>&1 3>&-
    printf '\n%s %s\n' "$mark" "$?" >&3
done
