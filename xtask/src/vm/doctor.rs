//! `millrace doctor` on a virtio NIC with all offloads that QEMU can give it: what a veth pair cannot show.

use super::{
    lab::Lab,
    machine::{Nic, Wire},
    steps::Steps,
    traffic::Cables,
};
use crate::test::output::Tally;
use anyhow::Result;

const PRELUDE: &str = r#"set -e
# In this mode, with these arguments, the doctor ends with this code.
verdict() {
    wanted=$1
    cat > /run/doctor.yaml << END
apiVersion: config.millrace.io/v1alpha1
kind: MillraceConfiguration
interfaces: [eth0]
xdp: {mode: $2}
services: []
END
    shift 2
    got=0
    millrace doctor --config /run/doctor.yaml "$@" > /run/said 2>&1 || got=$?
    cat /run/said
    [ "$got" = "$wanted" ]
}
says() {
    grep -q -e "$1" /run/said
}
stands() {
    ethtool -k eth0 | grep -q "^ *$1: $2\$"
}
set -x
"#;

const FIT: &str = "
ip link set eth0 up
ethtool -K eth0 lro off rx-gro-hw off || true
ethtool -k eth0
stands large-receive-offload 'off.*'
stands rx-vlan-offload 'off .fixed.'
verdict 0 native
says 'virtio_net, native XDP since 4.10'
says '1500 of at most 3506'
says '^fit$'
";

const LIMITED: &str = "
verdict 12 generic
says 'generic XDP, in the stack'
sysctl -w net.ipv4.conf.eth0.rp_filter=1
verdict 12 native
says 'strict'
sysctl -w net.ipv4.conf.eth0.rp_filter=0
";

const LARGE: &str = "
ip link set dev eth0 mtu 3507
verdict 13 native
says 'ip link set dev eth0 mtu 3506'
ip link set dev eth0 mtu 3506
verdict 0 native
ip link set dev eth0 mtu 1500
";

/// The kernel's name of the offload, ethtool's, the mode that it stands in the way of, the verdict without it.
fn merging(modern: bool) -> [&'static str; 4] {
    // LRO was this driver's name for it until 5.15.
    if modern {
        ["rx-gro-hw", "rx-gro-hw", "generic", "12"]
    } else {
        ["large-receive-offload", "lro", "native", "0"]
    }
}

pub(super) fn run(lab: &Lab<'_>) -> Result<Tally> {
    let cables = Cables::lay()?;
    let nic = Nic {
        number: 1,
        wire: Wire::Tap {
            device: Cables::end(),
            queues: 2,
            offloads: true,
        },
    };
    let machine = lab.boot("doctor", &[nic], Some(cables.netns()))?;
    let mut steps = Steps::on(machine, "doctor", PRELUDE, "dmesg | tail -n 20");
    let [kernels, name, mode, without] = merging(lab.kernel_at_least(5, 15));
    let unfit = format!(
        "
ethtool -K eth0 {name} on
stands {kernels} on
verdict 13 {mode}
says 'ethtool -K eth0 {name} off'
stands {kernels} on
verdict {without} {mode} --fix
stands {kernels} off
verdict {without} {mode}
millrace doctor --undo > /run/said
says '^undone: ethtool -K eth0 {name} on$'
stands {kernels} on
verdict 13 {mode}
verdict {without} {mode} --fix
millrace detach
stands {kernels} on
"
    );
    for (title, script) in [
        ("a fit NIC is called fit", FIT),
        ("limits are told", LIMITED),
        ("an MTU that XDP does not take is unfit", LARGE),
        ("an offload that merges packets is fixed and undone", &unfit),
    ] {
        steps.step(title, script);
    }
    Ok(steps.sum)
}
