//! `millrace explain`: what would become of a packet, step by step. Ends with 0 if it is forwarded, 1 if it is dropped
//! or answered, 3 if it is not ours.

use std::net::SocketAddr;

use super::{Exit, Failure, Global, client, show::show, table::table};
use crate::{
    observe::view::{Ends, Explanation, Outcome, Packet, Question},
    state::Protocol,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The packet's source: 198.51.100.7:50312
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "frame")]
    from: Option<SocketAddr>,
    /// Its destination: 192.0.2.10:443/tcp
    #[arg(long, value_name = "ADDRESS:PORT/PROTOCOL", value_parser = target, required_unless_present = "frame")]
    to: Option<Target>,
    /// What a TCP packet is: the first of its flow, or a later one
    #[arg(long, value_parser = ["syn", "ack"], conflicts_with = "frame")]
    flags: Option<String>,
    /// A whole frame instead, Ethernet header first
    #[arg(long, value_name = "HEX", conflicts_with_all = ["from", "to"])]
    frame: Option<String>,
    /// Interface it arrives on; the first of ours by default
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    address: SocketAddr,
    protocol: Protocol,
}

fn target(text: &str) -> Result<Target, String> {
    let form = || "write ADDRESS:PORT/tcp or ADDRESS:PORT/udp".to_owned();
    let (address, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    Ok(Target {
        address: address.parse().map_err(|_| form())?,
        protocol: match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(form()),
        },
    })
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let packet = match (&args.frame, args.from, args.to) {
        (None, Some(from), Some(to)) => Packet::Ends(Ends {
            from,
            to: to.address,
            protocol: to.protocol,
            flags: args.flags.clone(),
        }),
        (frame, ..) => Packet::Frame(frame.clone().unwrap_or_default()),
    };
    let question = Question {
        interface: args.interface.clone(),
        packet,
    };
    let outcome = std::cell::Cell::new(Outcome::Passed);
    show(
        global,
        || {
            let said: Explanation = client::post(&global.socket, "/v1/explain", &question)?;
            outcome.set(said.outcome);
            Ok(said)
        },
        |explanation, _| draw(explanation),
    )?;
    Ok(match outcome.get() {
        Outcome::Forwarded => Exit::Ok,
        Outcome::Dropped | Outcome::Answered => Exit::Failed,
        Outcome::Passed => Exit::NotOurs,
    })
}

fn draw(explanation: &Explanation) -> String {
    table(
        ["STEP", "RESULT", "WHY"],
        explanation
            .steps
            .iter()
            .map(|step| [step.step.clone(), step.result.clone(), step.why.clone()]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::Step;

    #[test]
    fn the_table_is_the_documented_one() {
        let step = |step: &str, result: &str, why: &str| Step {
            step: step.into(),
            result: result.into(),
            why: why.into(),
        };
        let explanation = Explanation {
            steps: vec![
                step("frontend", "default/web", "192.0.2.10:443/tcp"),
                step("slot", "91/128 gen 7", "hash 5be1c04a"),
                step("VERDICT", "TX eth0", "nothing changed"),
            ],
            outcome: Outcome::Forwarded,
            service: None,
            backend: None,
            frame: None,
        };
        assert_eq!(
            draw(&explanation),
            "\
STEP      RESULT        WHY
frontend  default/web   192.0.2.10:443/tcp
slot      91/128 gen 7  hash 5be1c04a
VERDICT   TX eth0       nothing changed"
        );
    }

    #[test]
    fn targets_are_read() {
        let read = |text: &str| target(text).map(|to| (to.address.to_string(), to.protocol));
        assert_eq!(
            read("192.0.2.10:443/tcp"),
            Ok(("192.0.2.10:443".into(), Protocol::Tcp))
        );
        assert_eq!(
            read("[2001:db8::1]:53/udp"),
            Ok(("[2001:db8::1]:53".into(), Protocol::Udp))
        );
        assert_eq!(
            read("192.0.2.10:80"),
            Ok(("192.0.2.10:80".into(), Protocol::Tcp))
        );
        assert!(target("192.0.2.10/tcp").is_err());
        assert!(target("192.0.2.10:80/sctp").is_err());
    }
}
