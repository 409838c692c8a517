//! Checks of one interface.

use super::{Facts, Found, Line};
use crate::{
    attach::{self, Inspected, Mode, Nic, kernel_version},
    net::{
        drivers::{self, Driver},
        ethtool::{Offload, Switch},
    },
};

/// Bytes that an outer IPv6 header takes in front of a frame; drivers leave 192 at least (256, less in the old receive
/// modes of Intel's).
const ROOM: u32 = 40;

pub(super) fn lines(name: &str, found: Option<&Found>, facts: &Facts) -> Vec<Line> {
    let Some(Found { inspected, sysctls }) = found else {
        let missing = Line::unfit("interface", "is not there", "ip link");
        return vec![missing.on(name)];
    };
    let Inspected { nic, .. } = inspected;
    let mut lines = vec![
        driver(nic, facts.mode, &facts.kernel),
        mtu(name, nic, facts.mode),
        headroom(nic, facts.mode),
        xdp_program(name, inspected),
        tc_programs(inspected),
    ];
    lines.extend(channels(name, nic, facts.mode));
    lines.extend(offloads(name, nic, facts.mode));
    lines.push(rp_filter(name, sysctls.rp_filter, facts.tunnels.is_some()));
    lines.push(forwarding(name, sysctls.forwarding4, sysctls.forwarding6));
    lines.into_iter().map(|line| line.on(name)).collect()
}

fn shown(nic: &Nic) -> &str {
    if nic.driver.is_empty() {
        "a driver without a name"
    } else {
        &nic.driver
    }
}

/// Whether the driver runs programs itself.
fn driver(nic: &Nic, mode: Mode, kernel: &str) -> Line {
    const NAME: &str = "driver";
    let shown = shown(nic);
    let other = attach::without_native(kernel);
    if mode == Mode::Generic && !attach::has_generic(kernel) {
        return Line::unfit(
            NAME,
            format!("{shown}; this kernel takes no program as ours in generic XDP"),
            other,
        );
    }
    if mode == Mode::Generic {
        return Line::limit(
            NAME,
            format!("{shown}; generic XDP, in the stack: most of the gain is lost"),
            "set `xdp.mode: native`",
        );
    }
    match drivers::known(&nic.driver) {
        None => Line::limit(
            NAME,
            format!("{shown} is not known to have native XDP; attaching will tell"),
            other,
        ),
        Some(Driver {
            since: (major, minor),
            ..
        }) => {
            if kernel_version(kernel).is_some_and(|kernel| kernel < (*major, *minor)) {
                return Line::unfit(
                    NAME,
                    format!("{shown} has native XDP since {major}.{minor}"),
                    format!("boot a kernel from {major}.{minor} on, or {other}"),
                );
            }
            Line::ok(NAME, format!("{shown}, native XDP since {major}.{minor}"))
        }
    }
}

/// A program without fragments takes what fits a buffer.
fn mtu(name: &str, nic: &Nic, mode: Mode) -> Line {
    const NAME: &str = "mtu";
    let mtu = nic.mtu;
    match nic.max_mtu() {
        // The stack's buffers hold any MTU, but programs see the first part of large packets only.
        _ if mode == Mode::Generic => Line::ok(NAME, mtu.to_string()),
        Some(most) if mtu > most => Line::unfit(
            NAME,
            format!("{mtu}; {} runs XDP up to {most}", nic.driver),
            format!("ip link set dev {name} mtu {most}"),
        ),
        Some(most) => Line::ok(NAME, format!("{mtu} of at most {most}")),
        None if mtu > 1500 => Line::limit(
            NAME,
            format!("{mtu}; up to which {} runs XDP is not known", shown(nic)),
            format!("ip link set dev {name} mtu 1500"),
        ),
        None => Line::ok(NAME, mtu.to_string()),
    }
}

/// Whether another header finds room in front of a frame.
fn headroom(nic: &Nic, mode: Mode) -> Line {
    const NAME: &str = "headroom";
    match (mode, drivers::known(&nic.driver)) {
        (Mode::Generic, _) => Line::ok(NAME, "256 bytes, made by the kernel where they lack"),
        (Mode::Native, Some(_)) => Line::ok(
            NAME,
            format!("192 bytes or more; `ipip` takes {ROOM} at most"),
        ),
        (Mode::Native, None) => Line::limit(
            NAME,
            format!("not known; `ipip` takes {ROOM} bytes at most"),
            "watch millrace_drops_total{reason=\"no_headroom\"}",
        ),
    }
}

/// ENA sends for XDP by channels of their own, and wants as many again.
fn channels(name: &str, nic: &Nic, mode: Mode) -> Option<Line> {
    const NAME: &str = "channels";
    let (used, most) = nic.channels?;
    if nic.driver != "ena" || mode == Mode::Generic {
        return None;
    }
    let half = (most / 2).max(1);
    Some(if used > half {
        Line::unfit(
            NAME,
            format!("{used} of {most}; ena takes a program at half of them"),
            format!("ethtool -L {name} combined {half}"),
        )
    } else {
        Line::ok(NAME, format!("{used} of {most}"))
    })
}

fn xdp_program(name: &str, inspected: &Inspected) -> Line {
    const NAME: &str = "xdp";
    match &inspected.xdp {
        None if matches!(&*inspected.nic.driver, "veth" | "tun") => Line::ok(NAME, "free"),
        None => Line::ok(
            NAME,
            "free; the first program may reset the NIC's queues for a moment",
        ),
        Some((_, mode)) if inspected.ours => {
            let mode = match mode {
                Mode::Native => "native",
                Mode::Generic => "generic",
            };
            Line::ok(NAME, format!("ours, {mode}"))
        }
        Some((program, _)) => Line::unfit(
            NAME,
            format!("{program} is attached, and foreign programs are never replaced"),
            format!("ip link set dev {name} xdp off"),
        ),
    }
}

/// Programs of others see what XDP leaves and our tc program does not take: that is no harm, but good to know.
fn tc_programs(inspected: &Inspected) -> Line {
    const NAME: &str = "tc";
    if inspected.tc.is_empty() {
        return Line::ok(NAME, "no programs of others");
    }
    let programs: Vec<_> = inspected.tc.iter().map(ToString::to_string).collect();
    Line::ok(
        NAME,
        format!("{}: they get what we do not take", programs.join(", ")),
    )
}

fn offloads(name: &str, nic: &Nic, mode: Mode) -> Vec<Line> {
    let faults = nic.faults(name, mode);
    let all = Offload::ALL.into_iter();
    all.map(|offload| {
        let switch = match offload {
            Offload::Lro => nic.lro,
            Offload::GroHw => nic.gro_hw,
            Offload::RxVlan => nic.rx_vlan,
        };
        match faults.iter().find(|fault| fault.offload == offload) {
            Some(fault) if switch.free => {
                Line::unfit(offload.name(), fault.what.clone(), "").mended_by(fault.mend.clone())
            }
            Some(fault) => Line::unfit(
                offload.name(),
                format!("{}; the driver does not let go of it", fault.what),
                "use another interface",
            ),
            None => stands(offload, switch),
        }
    })
    .collect()
}

fn stands(offload: Offload, switch: Switch) -> Line {
    let name = offload.name();
    match (offload, switch.on) {
        (_, false) => Line::ok(name, "off"),
        (Offload::RxVlan, true) => Line::ok(
            name,
            "on; no VLAN upon it, and tagged frames come without their tag",
        ),
        (Offload::GroHw, true) => {
            Line::ok(name, "on; the driver leaves it off for XDP, or refuses")
        }
        (Offload::Lro, true) => Line::ok(name, "on"),
    }
}

/// What we send on never meets it; what goes up the stack does (bypass, other ports, pods of this node), by the client's
/// address, whichever node's tunnel it came out of.
fn rp_filter(name: &str, value: Option<u8>, tunnels: bool) -> Line {
    const NAME: &str = "rp_filter";
    match value {
        Some(1) => Line::limit(
            NAME,
            if tunnels {
                "strict: what passes to the stack or comes out of a tunnel is dropped if its client is routed another way"
            } else {
                "strict: what passes to the stack from clients that are routed another way is dropped"
            },
            format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=2"),
        ),
        Some(0) => Line::ok(NAME, "off"),
        Some(_) => Line::ok(NAME, "loose"),
        None => Line::ok(NAME, "no IPv4"),
    }
}

/// `bpf_fib_lookup` answers on forwarding interfaces alone; the agent's own next hops need no look-up.
fn forwarding(name: &str, v4: bool, v6: bool) -> Line {
    const NAME: &str = "forwarding";
    if v4 && v6 {
        return Line::ok(NAME, "on");
    }
    let off = match (v4, v6) {
        (false, false) => "off",
        (false, true) => "off for IPv4",
        _ => "off for IPv6",
    };
    Line::ok(
        NAME,
        format!("{off} on {name}: next hops are the agent's alone, which is enough"),
    )
}
