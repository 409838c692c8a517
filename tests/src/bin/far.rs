//! One side of the network across two VMs: `far balancer WAY LINK` or `far world WAY LINK`, where WAY is `nat`, `ipip4`,
//! `ipip6` or `l2`, and LINK is `plain`, `vlan`, `qinq`, `bond` or `bondvlan`; or `segment`, which is for `nat` alone.

use anyhow::{Context as _, Result, bail};
use lb_tests::far;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let side = arguments.next().context("a side: balancer or world")?;
    let way = far::way(&arguments.next().context("a way")?)?;
    let link = arguments.next().context("a link")?;
    if link == "segment" {
        return match &*side {
            "balancer" => far::segment::balance(),
            "world" => far::segment::surround(),
            _ => bail!("no side {side}: balancer or world"),
        };
    }
    let link = link.parse()?;
    match &*side {
        "balancer" => far::balance(way, link),
        "world" => far::surround(way, link),
        _ => bail!("no side {side}: balancer or world"),
    }
}
