//! What of an interface's set-up would make XDP on it wrong, or make the kernel change an offload by itself: such an
//! interface is refused, with the command that mends it.

use std::io;

use super::{
    AttachError, Mend, Mode,
    netlink::{self, Interface},
};
use crate::net::{
    drivers,
    ethtool::{self, Offload, Switch},
};

/// An interface's set-up.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Nic {
    /// As `ethtool -i` names it; empty where the device does not say.
    pub driver: String,
    /// Bytes, without the Ethernet header.
    pub mtu: u32,
    pub lro: Switch,
    pub gro_hw: Switch,
    /// Of a bond: whether any of its ports has it on. Its own says nothing of them.
    pub rx_vlan: Switch,
    /// Those ports.
    pub stripping_ports: Vec<String>,
    /// Combined channels in use, and how many there may be.
    pub channels: Option<(u32, u32)>,
    /// VLAN interfaces upon it.
    pub vlans: Vec<String>,
}

/// What is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub offload: Offload,
    pub what: String,
    pub mend: Mend,
}

impl Nic {
    pub(super) fn read(interface: &Interface) -> io::Result<Self> {
        let name = &interface.name;
        let (mut vlans, mut ports) = (Vec::new(), Vec::new());
        for other in netlink::interfaces()? {
            if other.vlan_of == Some(interface.index) {
                vlans.push(other.name);
            } else if other.port_of == Some(interface.index) {
                ports.push(other.name);
            }
        }
        let driver = ethtool::driver(name)?;
        let mut rx_vlan = ethtool::offload(name, Offload::RxVlan)?;
        let mut stripping_ports = Vec::new();
        if driver == "bonding" {
            rx_vlan = Switch::default();
            for port in ports {
                let switch = ethtool::offload(&port, Offload::RxVlan)?;
                if switch.on {
                    rx_vlan = switch;
                    stripping_ports.push(port);
                }
            }
        }
        Ok(Self {
            driver,
            mtu: interface.mtu,
            lro: ethtool::offload(name, Offload::Lro)?,
            gro_hw: ethtool::offload(name, Offload::GroHw)?,
            rx_vlan,
            stripping_ports,
            channels: ethtool::channels(name)?,
            vlans,
        })
    }

    /// Why the program must not be put on it. `interface` is its name.
    pub fn faults(&self, interface: &str, mode: Mode) -> Vec<Fault> {
        let fault_of = |interface: &str, offload: Offload, what: String| Fault {
            offload,
            what,
            mend: Mend::Offload {
                interface: interface.to_owned(),
                offload,
                on: false,
            },
        };
        let fault = |offload, what| fault_of(interface, offload, what);
        let mut faults = Vec::new();
        if self.lro.on {
            let what = match mode {
                Mode::Native => "LRO is on: it merges packets into what no program can take apart",
                Mode::Generic => "LRO is on, and the kernel would switch it off unasked",
            };
            faults.push(fault(Offload::Lro, what.into()));
        }
        // Since 4.19 (dev_disable_gro_hw in generic_xdp_install); drivers decide for native programs.
        if self.gro_hw.on && mode == Mode::Generic {
            let what = "hardware GRO is on, and the kernel would switch it off unasked";
            faults.push(fault(Offload::GroHw, what.into()));
        }
        if self.rx_vlan.on && !self.vlans.is_empty() {
            let what = format!(
                "the NIC takes VLAN tags out before XDP sees the frame (rxvlan), so packets for {} would look untagged",
                self.vlans.join(", ")
            );
            if self.stripping_ports.is_empty() {
                faults.push(fault(Offload::RxVlan, what));
            } else {
                let ports = self.stripping_ports.iter();
                faults.extend(ports.map(|port| fault_of(port, Offload::RxVlan, what.clone())));
            }
        }
        faults
    }

    /// The largest MTU that the driver takes a program at, as far as it is known.
    pub fn max_mtu(&self) -> Option<u32> {
        drivers::known(&self.driver)?.max_mtu
    }
}

/// Refuses an interface that is not fit.
pub(super) fn check(interface: &Interface, mode: Mode) -> Result<Nic, AttachError> {
    let nic = Nic::read(interface).map_err(AttachError::system(format!(
        "offloads of {}",
        interface.name
    )))?;
    let faults = nic.faults(&interface.name, mode);
    if faults.is_empty() {
        return Ok(nic);
    }
    let part = |part: fn(&Fault) -> String, between: &str| {
        faults.iter().map(part).collect::<Vec<_>>().join(between)
    };
    Err(AttachError::Unfit {
        interface: interface.name.clone(),
        what: part(|fault| fault.what.clone(), "; "),
        fix: format!("`{}`", part(|fault| fault.mend.to_string(), " && ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Switch = Switch {
        on: true,
        free: true,
    };

    fn told(nic: &Nic, mode: Mode) -> Vec<String> {
        let faults = nic.faults("eth0", mode);
        faults.iter().map(|fault| fault.mend.to_string()).collect()
    }

    #[test]
    fn a_plain_interface_is_fit() {
        let nic = Nic {
            rx_vlan: ON,
            gro_hw: ON,
            ..Nic::default()
        };
        assert_eq!(told(&nic, Mode::Native), Vec::<String>::new());
    }

    #[test]
    fn what_merges_or_strips_is_named_with_its_command() {
        let nic = Nic {
            lro: ON,
            gro_hw: ON,
            rx_vlan: ON,
            vlans: vec!["eth0.7".into()],
            ..Nic::default()
        };
        assert_eq!(
            told(&nic, Mode::Native),
            ["ethtool -K eth0 lro off", "ethtool -K eth0 rxvlan off"]
        );
        assert_eq!(
            told(&nic, Mode::Generic),
            [
                "ethtool -K eth0 lro off",
                "ethtool -K eth0 rx-gro-hw off",
                "ethtool -K eth0 rxvlan off"
            ]
        );
        assert!(nic.faults("eth0", Mode::Native)[1].what.contains("eth0.7"));
    }

    #[test]
    fn of_a_bond_the_ports_are_mended() {
        let nic = Nic {
            rx_vlan: ON,
            stripping_ports: vec!["eth0".into(), "eth1".into()],
            vlans: vec!["bond0.7".into()],
            ..Nic::default()
        };
        let faults = nic.faults("bond0", Mode::Native);
        let told: Vec<_> = faults.iter().map(|fault| fault.mend.to_string()).collect();
        assert_eq!(
            told,
            ["ethtool -K eth0 rxvlan off", "ethtool -K eth1 rxvlan off"]
        );
    }

    #[test]
    fn the_largest_mtu_is_the_drivers() {
        let nic = |driver: &str| Nic {
            driver: driver.into(),
            ..Nic::default()
        };
        assert_eq!(nic("virtio_net").max_mtu(), Some(3506));
        assert_eq!(nic("e1000").max_mtu(), None);
    }
}
