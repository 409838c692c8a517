//! The far end of a test connection, as a process of its own that can be killed: `peer echo NAME ADDRESS...` says
//! NAME to everyone and echoes; `peer decap DEVICE` unpacks IP-in-IP packets, which a kernel without the `ipip` and
//! `ip6_tunnel` modules cannot do.

use anyhow::{Context as _, Result, bail};
use lb_tests::servers::{decap, echo};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().context("a role: echo or decap")?;
    let name = arguments.next().context("a name")?;
    match role.as_str() {
        "echo" => echo::serve(
            &name,
            arguments
                .map(|a| Ok(a.parse()?))
                .collect::<Result<Vec<_>>>()?,
        ),
        "decap" => decap::unpack(&name),
        _ => bail!("no role {role}: echo or decap"),
    }
}
