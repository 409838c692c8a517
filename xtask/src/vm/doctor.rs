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

const FIT: &str = r#"
ip link set eth0 up
ethtool -K eth0 lro off rx-gro-hw off || true
ethtool -k eth0
stands large-receive-offload 'off.*'
stands rx-vlan-offload 'off .fixed.'
verdict $best native
says 'virtio_net, native XDP since 4.10'
says '1500 of at most 3506'
says "^$words\$"
"#;

const LIMITED: &str = r#"
verdict $generic generic
says "$stack"
sysctl -w net.ipv4.conf.eth0.rp_filter=1
verdict 12 native
says 'strict'
sysctl -w net.ipv4.conf.eth0.rp_filter=0
"#;

const LARGE: &str = "
ip link set dev eth0 mtu 3507
verdict 13 native
says 'ip link set dev eth0 mtu 3506'
ip link set dev eth0 mtu 3506
verdict $best native
ip link set dev eth0 mtu 1500
";

/// What this driver merges packets by was called LRO until 5.15 (Linux commit dbcf24d15388; 5.10.223 has it, too). A
/// native program has the driver switch it off; a generic one would have the stack do that.
const MERGING: &str = "
ethtool -K eth0 rx-gro-hw on
stands rx-gro-hw on
verdict 13 generic
says 'ethtool -K eth0 rx-gro-hw off'
stands rx-gro-hw on
verdict $generic generic --fix
stands rx-gro-hw off
verdict $generic generic
millrace doctor --undo > /run/said
says '^undone: ethtool -K eth0 rx-gro-hw on$'
stands rx-gro-hw on
verdict 13 generic
verdict $generic generic --fix
millrace detach
stands rx-gro-hw on
";

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
    // An older kernel lacks something that is done without (`doctor` names it).
    let best = if lab.kernel_at_least(6, 6) {
        "best=0\nwords=fit\n"
    } else {
        "best=12\nwords='fit, with limits'\n"
    };
    let generic = if lab.kernel_at_least(5, 15) {
        "generic=12\nstack='generic XDP, in the stack'\n"
    } else {
        "generic=13\nstack='no program as ours in generic XDP'\n"
    };
    for (title, script) in [
        ("a fit NIC is called fit", FIT),
        ("limits are told", LIMITED),
        ("an MTU that XDP does not take is unfit", LARGE),
        (
            "an offload that merges packets is fixed and undone",
            MERGING,
        ),
    ] {
        steps.step(title, &format!("{best}{generic}{script}"));
    }
    Ok(steps.sum)
}
