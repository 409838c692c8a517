//! Pure: which devices XDP meets the frames of an interface on, and with which tags.

use std::collections::BTreeMap;

use lb_common::abi::Segment;

use super::Facts;

/// Entries of one kind at most, as the maps have room for.
const MOST: usize = 16_384;

/// What VLAN devices and bonds are to XDP.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Segments {
    /// Interfaces of the stack by where XDP meets their frames, where that is elsewhere.
    pub interfaces: BTreeMap<Segment, u32>,
    /// Where XDP sends what leaves by an interface, where that is elsewhere.
    pub below: BTreeMap<u32, Segment>,
}

impl Facts {
    /// Where XDP sends what leaves by an interface: by the device below a VLAN device, tagged. Of more than two tags, which
    /// the packet path does not know, the interface itself.
    pub fn segment(&self, ifindex: u32) -> Segment {
        let mut segment = Segment { ifindex, tags: 0 };
        let vlan = |index: u32| self.links.get(&index).and_then(|link| link.vlan);
        while let Some(vlan) = vlan(segment.ifindex) {
            if segment.tags >> 16 != 0 {
                return Segment { ifindex, tags: 0 };
            }
            // The lower device's tag is the outer one.
            segment = Segment {
                ifindex: vlan.below,
                tags: segment.tags << 16 | vlan.tag,
            };
        }
        segment
    }

    /// Those of all VLAN devices and bonds. XDP meets the frames of a bond on its ports.
    pub fn segments(&self) -> Segments {
        let mut segments = Segments::default();
        for (&ifindex, link) in &self.links {
            if link.vlan.is_some() {
                let segment = self.segment(ifindex);
                if segment.tags != 0 {
                    segments.below.insert(ifindex, segment);
                    segments.interfaces.insert(segment, ifindex);
                }
            }
        }
        let upon: Vec<_> = segments.interfaces.clone().into_iter().collect();
        for (&port, link) in &self.links {
            let Some(bond) = link.controller.filter(|index| self.is_bond(*index)) else {
                continue;
            };
            let of = |tags: u32| Segment {
                ifindex: port,
                tags,
            };
            segments.interfaces.insert(of(0), bond);
            for (segment, ifindex) in &upon {
                if segment.ifindex == bond {
                    segments.interfaces.insert(of(segment.tags), *ifindex);
                }
            }
        }
        // Better some than none of them.
        while segments.interfaces.len() > MOST {
            segments.interfaces.pop_last();
        }
        while segments.below.len() > MOST {
            segments.below.pop_last();
        }
        segments
    }

    fn is_bond(&self, ifindex: u32) -> bool {
        let link = self.links.get(&ifindex);
        link.is_some_and(|link| link.kind == "bond")
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::tag;
    use netlink_packet_route::link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, VlanProtocol,
    };

    use super::super::{Link, Sending, Update, Vlan, messages};
    use super::*;

    /// eth0 (2) and eth1 (3), ports of bond0 (4); on the bond VLAN 7 (5), on eth2 (6) the service VLAN 100 (7) and in it
    /// VLAN 8 (8), in that VLAN 9 (9).
    fn facts() -> Facts {
        let mut facts = Facts::default();
        let mut add = |index: u32, kind: &str, controller, vlan| {
            let link = Link {
                name: format!("if{index}"),
                up: true,
                kind: kind.into(),
                controller,
                vlan,
                ..Link::default()
            };
            facts.apply(Update::Link(index, Some(link)));
        };
        let vlan = |below, number, service| {
            Some(Vlan {
                below,
                tag: tag(number, service),
            })
        };
        add(2, "", Some(4), None);
        add(3, "", Some(4), None);
        add(4, "bond", None, None);
        add(5, "vlan", None, vlan(4, 7, false));
        add(6, "", None, None);
        add(7, "vlan", None, vlan(6, 100, true));
        add(8, "vlan", None, vlan(7, 8, false));
        add(9, "vlan", None, vlan(8, 9, false));
        facts
    }

    fn at(ifindex: u32, tags: u32) -> Segment {
        Segment { ifindex, tags }
    }

    #[test]
    fn a_vlan_leaves_by_the_device_below_with_its_tags() {
        let facts = facts();
        let (inner, outer) = (tag(8, false), tag(100, true));
        assert_eq!(facts.segment(6), at(6, 0));
        assert_eq!(facts.segment(5), at(4, tag(7, false)));
        assert_eq!(facts.segment(7), at(6, outer));
        assert_eq!(facts.segment(8), at(6, inner << 16 | outer));
        assert_eq!(facts.segment(9), at(9, 0), "three tags");
    }

    #[test]
    fn frames_of_a_bond_come_in_by_its_ports() {
        let Segments { interfaces, below } = facts().segments();
        let (seven, outer) = (tag(7, false), tag(100, true));
        let both = tag(8, false) << 16 | outer;
        let expected = [
            (at(2, 0), 4),
            (at(2, seven), 5),
            (at(3, 0), 4),
            (at(3, seven), 5),
            (at(4, seven), 5),
            (at(6, outer), 7),
            (at(6, both), 8),
        ];
        assert_eq!(interfaces, expected.into());
        assert_eq!(
            below,
            [(5, at(4, seven)), (7, at(6, outer)), (8, at(6, both))].into()
        );
    }

    /// What the kernel tells of a VLAN device upon device 2; `more` of it.
    fn told(more: Option<LinkAttribute>) -> Option<Vlan> {
        let data = vec![
            InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
            InfoVlan::Id(100),
        ];
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.100".into()),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ]),
        ];
        message.attributes.extend(more);
        messages::link(message, |_, _| Sending::Never)?.1.vlan
    }

    #[test]
    fn the_kernel_tells_what_a_vlan_stands_upon() {
        let expected = Vlan {
            below: 2,
            tag: tag(100, true),
        };
        assert_eq!(told(None), Some(expected));
        let elsewhere = LinkAttribute::LinkNetNsId(1);
        assert_eq!(told(Some(elsewhere)), None, "in another namespace");
    }

    #[test]
    fn a_bridge_is_no_bond() {
        let mut facts = facts();
        let mut bridge = facts.links[&4].clone();
        bridge.kind = "bridge".into();
        facts.apply(Update::Link(4, Some(bridge)));
        let interfaces = facts.segments().interfaces;
        assert!(interfaces.keys().all(|segment| segment.ifindex > 3));
    }
}
