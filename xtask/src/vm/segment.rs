//! Two VMs on one LAN segment where nobody has a route to a VIP (`lb_tests::far::segment`): found by ARP and neighbour
//! discovery through a NIC that filters multicast, with an agent and after its death.

use super::traffic::Side;
use crate::test::output::{Reader, Tally};
use anyhow::Result;

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

/// Goes through all steps, or up to the first one that fails.
pub(super) fn run(balancer: &mut Side, world: &mut Side) -> Result<Tally> {
    for side in [&mut *world, &mut *balancer] {
        side.start("segment", "nat")?;
        side.wait("done")?;
    }
    let mut sum = Tally::default();
    for Step { line, name } in STEPS {
        let side = if line.is_some() {
            &mut *world
        } else {
            &mut *balancer
        };
        let mut tally = Tally::default();
        match side.step(line.unwrap_or_default(), "done") {
            Ok(said) => {
                tally = results(&said, &format!("segment::{name}"));
                tally.passed += 1;
            }
            Err(error) => {
                tally.failed = 1;
                tally.failures.push(format!("segment::{name}"));
                eprintln!("segment::{name}: {error:#}");
            }
        }
        eprintln!("vm: segment, {name}: {}", tally.line());
        let whole = tally.failed == 0;
        sum.absorb(tally);
        if !whole {
            break;
        }
    }
    Ok(sum)
}

/// Tests among what a side said, under this name; what it said goes to stderr if one failed.
pub(super) fn results(said: &str, under: &str) -> Tally {
    let mut reader = Reader::default();
    for line in said.lines() {
        match line.strip_prefix("test ") {
            Some(name) if !name.starts_with("result: ") => {
                reader.line(&format!("test {under}::{name}"));
            }
            _ => reader.line(line),
        }
    }
    let tally = reader.finish();
    if tally.failed > 0 {
        eprintln!("{said}");
    }
    tally
}
