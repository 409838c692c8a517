//! UDP flows with real servers: who keeps them, and who loses them (contract A7).

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    balancer::PATIENCE,
    is_root,
    servers::ECHO,
    stage::{self, Stage, Way},
    topology::{Family, Shape},
};

/// Sockets of each family.
const SOCKETS: usize = 64;

/// Open sockets, and what each is answered.
struct Talks {
    sockets: Vec<UdpSocket>,
    round: usize,
}

impl Talks {
    fn open(stage: &Stage) -> Result<Self> {
        let mut sockets = Vec::new();
        for family in Family::BOTH {
            let vip = stage.vip(family, ECHO);
            let any: SocketAddr = match family {
                Family::V4 => ([0, 0, 0, 0], 0).into(),
                Family::V6 => ([0_u16; 8], 0).into(),
            };
            for _ in 0..SOCKETS {
                let socket = stage.client().enter(|| UdpSocket::bind(any))?;
                socket.connect(vip)?;
                socket.set_read_timeout(Some(Duration::from_secs(1)))?;
                sockets.push(socket);
            }
        }
        Ok(Self { sockets, round: 0 })
    }

    /// Asks by each socket; the names of the backends that answered, or that there is none.
    fn round(&mut self) -> Result<Vec<Option<String>>> {
        self.round += 1;
        let question = format!("round {}", self.round);
        let answers = self.sockets.iter().map(|socket| ask(socket, &question));
        answers.collect()
    }

    /// The same where all are answered.
    fn answered(&mut self) -> Result<Vec<String>> {
        let answers = self.round()?.into_iter();
        answers
            .map(|answer| answer.context("refused"))
            .collect::<Result<_>>()
    }
}

/// The backend that answers; none where the question is refused. Asked again each second, as who speaks UDP has to.
fn ask(socket: &UdpSocket, question: &str) -> Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 64];
    while Instant::now() < deadline {
        let heard = socket
            .send(question.as_bytes())
            .and_then(|_| socket.recv(&mut bytes));
        match heard {
            Ok(length) => {
                let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
                if let Some((name, asked)) = answer.split_once(' ')
                    && asked == question
                {
                    return Ok(Some(name.to_owned()));
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
            Err(_) => {}
        }
    }
    bail!("{socket:?} is not answered")
}

/// A7.1, A7.2, A7.4
#[test]
fn udp_flows_stay_with_who_serves_and_leave_who_does_not() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set(Way::Nat, Shape::OneArm)?;
    let mut talks = Talks::open(&stage)?;
    let before = talks.answered()?;
    let all: BTreeSet<_> = before.iter().map(String::as_str).collect();
    ensure!(all.len() == 4, "{all:?}");
    let gone = stage.topology.backends[0].name.clone();

    // It drains: its flows stay, whether an agent runs or not.
    for family in Family::BOTH {
        let service = stage::service_name(family, ECHO);
        let backend = stage.target(family, 0, ECHO);
        stage
            .balancer
            .cli(&["drain", &service, &backend.to_string()])?;
        stage.balancer.wait_for_state(&service, backend, "drain")?;
    }
    assert_eq!(talks.answered()?, before, "drained");
    stage.balancer.kill()?;
    assert_eq!(talks.answered()?, before, "no agent runs");
    stage.balancer.run()?;
    for family in Family::BOTH {
        let backend = stage.target(family, 0, ECHO);
        let service = stage::service_name(family, ECHO);
        stage.balancer.wait_for_state(&service, backend, "drain")?;
    }
    assert_eq!(talks.answered()?, before, "another agent");
    let new = Talks::open(&stage)?.answered()?;
    ensure!(!new.contains(&gone), "new flows go elsewhere");

    // It is gone: its flows leave it at their next packet, the others stay.
    for service in &mut stage.configuration.services {
        service.backends.remove(0);
    }
    stage.balancer.configure(&stage.configuration)?;
    let after = talks.answered()?;
    ensure!(!after.contains(&gone), "{after:?}");
    for (before, after) in before.iter().zip(&after) {
        ensure!(
            *before == gone || before == after,
            "{before} became {after}"
        );
    }

    // All are gone, and come back.
    let some = stage.configuration.clone();
    for service in &mut stage.configuration.services {
        service.backends.clear();
    }
    stage.balancer.configure(&stage.configuration)?;
    let refused = talks.round()?;
    ensure!(refused.iter().all(Option::is_none), "{refused:?}");
    stage.balancer.configure(&some)?;
    let back = talks.answered()?;
    ensure!(!back.contains(&gone), "{back:?}");
    Ok(())
}
