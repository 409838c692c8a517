//! Two VMs on one LAN segment where nobody has a route to a VIP (`lb_tests::far::segment`): found by ARP and neighbour
//! discovery through a NIC that filters multicast, with an agent and after its death.

use super::traffic::{Side, hand_on};
use anyhow::{Context as _, Result};

/// What each side is told, in this order, and the name of what succeeds then.
const STEPS: [Step; 6] = [
    Step::world("ask", "nobody_has_the_vips_yet"),
    Step::balancer("a_nic_that_filters_multicast_serves_natively"),
    Step::world("requests", "with_an_agent"),
    Step::balancer("the_group_outlives_the_agent"),
    Step::world("requests", "without_an_agent"),
    Step::balancer("detach_leaves_the_group"),
];

struct Step {
    /// For the world; the balancer knows itself what comes next.
    line: Option<&'static str>,
    name: &'static str,
}

impl Step {
    const fn world(line: &'static str, name: &'static str) -> Self {
        Self {
            line: Some(line),
            name,
        }
    }

    const fn balancer(name: &'static str) -> Self {
        Self { line: None, name }
    }
}

/// Goes through all steps on a link that is a segment; their number. An error names the one that failed.
pub(super) fn run(
    balancer: &mut Side,
    world: &mut Side,
    link: &str,
    line: &mut impl FnMut(&str),
) -> Result<usize> {
    for side in [&mut *world, &mut *balancer] {
        side.start(link, "nat")?;
        side.wait("done")?;
    }
    for Step { line: told, name } in STEPS {
        let side = if told.is_some() {
            &mut *world
        } else {
            &mut *balancer
        };
        let said = side.step(told.unwrap_or_default(), "done");
        hand_on(&said.context(name)?, &format!("{link}::{name}"), line);
    }
    Ok(STEPS.len())
}
