//! Source ranges: entries of the tries, under the index of their service.

use ipnet::IpNet;
use lb_common::abi::SourceKey;

use super::{Op, PlanError, Planner, limits::SOURCES, placed::Placed};

impl Planner {
    /// Whether the tries have room for the ranges that `placed` does not have yet.
    pub(super) fn check_sources(&self, placed: &Placed, wanted: &[IpNet]) -> Result<(), PlanError> {
        for v4 in [true, false] {
            let new = |net: &&IpNet| net.addr().is_ipv4() == v4 && !placed.sources.contains(*net);
            let needed = self.sources[usize::from(v4)] + wanted.iter().filter(new).count() as u32;
            if needed > SOURCES {
                return Err(PlanError::full("source ranges", needed, SOURCES));
            }
        }
        Ok(())
    }

    pub(super) fn insert_sources(
        &mut self,
        placed: &mut Placed,
        wanted: &[IpNet],
        ops: &mut Vec<Op>,
    ) {
        for net in wanted {
            if placed.sources.insert(*net) {
                self.pools.before_source(ops);
                self.sources[usize::from(net.addr().is_ipv4())] += 1;
                ops.push(source(placed.index, *net, true));
            }
        }
    }

    pub(super) fn remove_sources(
        &mut self,
        placed: &mut Placed,
        wanted: &[IpNet],
        ops: &mut Vec<Op>,
    ) {
        for net in placed.sources.extract_if(.., |net| !wanted.contains(net)) {
            self.pools.source_removed();
            self.sources[usize::from(net.addr().is_ipv4())] -= 1;
            ops.push(source(placed.index, net, false));
        }
    }
}

pub(super) fn source(index: u32, net: IpNet, insert: bool) -> Op {
    let service_be = index.to_be();
    let bits = net.prefix_len().into();
    match net {
        IpNet::V4(net) => {
            let key = SourceKey {
                service_be,
                client: net.network().into(),
            };
            if insert {
                Op::InsertSource4 { key, bits }
            } else {
                Op::RemoveSource4 { key, bits }
            }
        }
        IpNet::V6(net) => {
            let key = SourceKey {
                service_be,
                client: net.network().into(),
            };
            if insert {
                Op::InsertSource6 { key, bits }
            } else {
                Op::RemoveSource6 { key, bits }
            }
        }
    }
}
