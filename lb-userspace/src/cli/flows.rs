//! `millrace flows`: what the packet path remembers.

use super::{
    Exit, Failure, Global, client,
    show::show,
    table::{age, table},
};
use crate::observe::view::{Flows, protocol};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Only flows to this frontend: `192.0.2.10`, `192.0.2.10:443`, `[2001:db8::10]:443`
    #[arg(long, value_name = "FRONTEND")]
    to: Option<String>,
    /// Only flows of this client: address, or address and port
    #[arg(long, value_name = "CLIENT")]
    from: Option<String>,
    /// Show no more than this many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let mut path = format!("/v1/flows?limit={}", args.limit);
    for (name, value) in [("to", &args.to), ("from", &args.from)] {
        if let Some(value) = value {
            path = format!("{path}&{name}={}", client::escaped(value));
        }
    }
    show(
        global,
        || client::get::<Flows>(&global.socket, &path),
        |flows, _| draw(flows),
    )?;
    Ok(Exit::Ok)
}

fn draw(flows: &Flows) -> String {
    let text = table(
        [
            "PROTO", "CLIENT", "FRONTEND", "BACKEND", "NAT", "STATE", "IDLE",
        ],
        flows.flows.iter().map(|flow| {
            [
                protocol(flow.protocol).to_owned(),
                flow.client.to_string(),
                flow.frontend.to_string(),
                flow.backend.to_string(),
                // Other modes show the backend the client itself.
                match &*flow.mode {
                    "nat" => flow.nat.to_string(),
                    mode => mode.to_owned(),
                },
                flow.state.clone(),
                age(flow.idle_seconds),
            ]
        }),
    );
    if flows.more > 0 {
        return format!("{text}\n… and {} more: see --limit", flows.more);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observe::view::Flow, state::Protocol};

    #[test]
    fn the_table_is_the_documented_one() {
        let flow = Flow {
            protocol: Protocol::Tcp,
            client: "198.51.100.7:50312".parse().unwrap(),
            frontend: "192.0.2.10:443".parse().unwrap(),
            backend: "10.0.0.11:8443".parse().unwrap(),
            nat: "10.0.0.5:61007".parse().unwrap(),
            mode: "nat".into(),
            state: "est".into(),
            idle_seconds: 1,
        };
        let local = Flow {
            backend: "10.244.1.11:8443".parse().unwrap(),
            nat: "198.51.100.7:50312".parse().unwrap(),
            mode: "local".into(),
            ..flow.clone()
        };
        let flows = Flows {
            flows: vec![flow, local],
            more: 2,
        };
        assert_eq!(
            draw(&flows),
            "\
PROTO  CLIENT              FRONTEND        BACKEND           NAT             STATE  IDLE
tcp    198.51.100.7:50312  192.0.2.10:443  10.0.0.11:8443    10.0.0.5:61007  est    1s
tcp    198.51.100.7:50312  192.0.2.10:443  10.244.1.11:8443  local           est    1s
… and 2 more: see --limit"
        );
    }
}
