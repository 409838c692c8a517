//! One side of the network across two VMs: `far balancer WAY LINK` or `far world WAY LINK`, where WAY is `nat`, `ipip4`,
//! `ipip6` or `l2`, and LINK is `plain`, `vlan`, `qinq`, `bond` or `bondvlan`, or `segment` or `vlansegment`, which
//! are for `nat` alone.

use anyhow::{Context as _, Result, bail};
use lb_tests::far::{self, Link};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let side = arguments.next().context("a side: balancer or world")?;
    let way = far::way(&arguments.next().context("a way")?)?;
    let link = arguments.next().context("a link")?;
    let segment = match &*link {
        "segment" => Some(Link::Plain),
        "vlansegment" => Some(Link::Vlan),
        _ => None,
    };
    match (&*side, segment) {
        ("balancer", None) => far::balance(way, link.parse()?),
        ("world", None) => far::surround(way, link.parse()?),
        ("balancer", Some(link)) => far::segment::balance(link),
        ("world", Some(link)) => far::segment::surround(link),
        _ => bail!("no side {side}: balancer or world"),
    }
}
