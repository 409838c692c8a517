//! What is done with the package on its machine, as shell scripts with `set -e`.

/// For all of them.
pub(super) const PRELUDE: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive
# Everything that a load balancer could have changed; the settings that the kernel itself changes have no part in it.
state() {
    bpftool net show
    find /sys/fs/bpf | sort
    ip -d link show
    ip address show dev eth0
    ip route show table all
    ip -6 route show table all
    tc qdisc show
    ethtool -k eth0
    ethtool -l eth0
    cat /proc/net/dev_mcast
    nft list ruleset
    grep -rs . /proc/sys/net/core /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort
}
is() {
    [ "$(systemctl show --property "$1" --value millrace)" = "$2" ]
}
natively() {
    ip -j link show dev eth0 | grep -q '"xdp":{"mode":1,'
    ethtool -i eth0 | grep -q '^driver: virtio_net$'
}
eventually() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ]
        sleep 0.1
    done
}
announced() {
    [ "$(millrace status | grep -c ' announced$')" = 2 ]
}
ready() {
    for service in http4 http6 echo4 echo6; do
        [ "$(millrace backends $service | grep -c ' ready ')" = 4 ] || return 1
    done
}
serving() {
    is ActiveState active
    is SubState running
    is StatusText serving
    natively
    eventually ready
}
set -x
"#;

/// As `millrace.network` says, and no more: no route leads anywhere else.
pub(super) const PREPARE: &str = r#"
for program in cargo rustc millrace; do
    if command -v $program; then exit 1; fi
done
systemctl enable --now systemd-networkd
/lib/systemd/systemd-networkd-wait-online --interface=eth0 --timeout=60
state > /run/before
[ "$(wc -l < /run/before)" -gt 500 ]
"#;

pub(super) const INSTALL: &str = r#"
apt-get install --yes /srv/first.deb
state | diff /run/before -
[ "$(systemctl is-enabled millrace || true)" = disabled ]
# There is no configuration.
systemctl start millrace
is ActiveState inactive
state | diff /run/before -
"#;

pub(super) const START: &str = "
cp /srv/millrace.yaml /etc/millrace/millrace.yaml
millrace check /etc/millrace/millrace.yaml
systemctl enable --now millrace
is Type notify
serving
eventually announced
";

pub(super) const METRICS: &str = r#"
bash -c 'exec 3<> /dev/tcp/127.0.0.1/9470
printf "GET /metrics HTTP/1.0\r\n\r\n" >&3
cat <&3'
"#;

pub(super) const UPGRADE: &str = r#"
before=$(systemctl show --property MainPID --value millrace)
apt-get install --yes /srv/second.deb
[ "$(dpkg-query -W -f '${Version}' millrace)" = "$(dpkg-deb -f /srv/second.deb Version)" ]
serving
if is MainPID "$before"; then exit 1; fi
announced
"#;

pub(super) const MANAGE: &str = r#"
systemctl reload millrace
serving

systemctl stop millrace
is ActiveState inactive
natively
[ -d /sys/fs/bpf/millrace ]
systemctl start millrace
serving

systemctl restart millrace
serving

crashed=$(systemctl show --property MainPID --value millrace)
kill -KILL "$crashed"
eventually is NRestarts 1
eventually is StatusText serving
serving
if is MainPID "$crashed"; then exit 1; fi
"#;

/// Such an end is no crash: the next try would end the same way.
pub(super) const MISTAKE: &str = "
echo nonsense >> /etc/millrace/millrace.yaml
if systemctl restart millrace; then exit 1; fi
is ActiveState failed
is ExecMainStatus 2
is NRestarts 0
natively
cp /srv/millrace.yaml /etc/millrace/millrace.yaml
systemctl start millrace
serving
";

/// By hand, past the unit.
pub(super) const REFUSE: &str = r#"
systemctl stop millrace
millrace run --config /etc/millrace/millrace.yaml > /run/agent.log 2>&1 &
agent=$!
eventually ready
if apt-get remove --yes millrace; then exit 1; fi
[ -x /usr/sbin/millrace ]
natively
kill "$agent"
wait "$agent"
"#;

pub(super) const REMOVE: &str = "
systemctl enable --now millrace
serving
apt-get remove --yes millrace
state | diff /run/before -
is LoadState not-found
for path in /usr/sbin/millrace /run/millrace /etc/systemd/system/multi-user.target.wants/millrace.service; do
    [ ! -e $path ]
done
apt-get purge --yes millrace
[ ! -e /etc/millrace/example.yaml ]
[ -e /etc/millrace/millrace.yaml ]
state | diff /run/before -
";

/// The balancer's place in the segment of `lb_tests::far::segment`.
pub(super) const NETWORK: &str = "[Match]
Name=eth0

[Network]
Address=10.0.0.2/24
Address=fd00::2/64
IPv6AcceptRA=no
LinkLocalAddressing=ipv6
";

/// What the agent said.
pub(super) const LOG: &str = "journalctl --no-pager --unit millrace --lines 50";
