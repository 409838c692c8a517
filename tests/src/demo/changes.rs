//! What happens to connections when a backend leaves, in good order or in bad.

#![expect(clippy::print_stdout, reason = "the demo speaks to a person")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::Result;

use super::{ECHO, Family, HTTP, Score, Stage, answers_table, indented, part};
use crate::{
    clients::{self, Answers, Held},
    stage::{Servers, service_name},
};

/// Open connections per family while backends come and go.
const HELD: usize = 500;
const CONNECTIONS: usize = 2_000;

pub(super) fn drain(stage: &Stage, score: &mut Score) -> Result<()> {
    part("A backend is drained");
    println!("b3 is to be updated. Its connections shall go on, new ones shall go elsewhere.\n");
    let mut held = hold(stage)?;
    let on_b3 = count(&held, "b3");
    for (family, port) in all_services() {
        let service = service_name(family, port);
        let backend = stage.target(family, 2, port).to_string();
        println!("  $ millrace drain {service} {backend}");
        stage.balancer.cli(&["drain", &service, &backend])?;
        stage
            .balancer
            .wait_for_state(&service, stage.target(family, 2, port), "drain")?;
    }
    println!("\n  $ millrace backends {}", service_name(Family::V4, HTTP));
    indented(
        &stage
            .balancer
            .cli(&["backends", &service_name(Family::V4, HTTP)])?,
    );

    println!("\n{CONNECTIONS} new connections per family meanwhile:\n");
    none_goes_to(stage, score, "b3");
    let broken = round_trips(&mut held);
    let claim = format!(
        "all {} open connections still work, the {on_b3} to b3 among them",
        2 * HELD
    );
    score.claim(broken.is_empty(), &claim);

    for (family, port) in all_services() {
        let backend = stage.target(family, 2, port);
        let service = service_name(family, port);
        stage
            .balancer
            .cli(&["undrain", &service, &backend.to_string()])?;
        stage.balancer.wait_for_state(&service, backend, "ready")?;
    }
    println!("\nb3 is taken back with `millrace undrain`.");
    Ok(())
}

pub(super) fn kill(stage: &mut Stage, score: &mut Score) -> Result<()> {
    part("A backend is killed");
    println!(
        "All servers of b2 die at once, while clients go on. The health check asks every 200 ms and takes a"
    );
    println!(
        "backend out after three silences; until then new connections still meet the dead one.\n"
    );
    let mut held = hold(stage)?;
    let on_b2 = count(&held, "b2");
    let going = AtomicBool::new(true);
    let client = stage.client().clone();
    let vip = stage.vip(Family::V4, HTTP);
    let (window, seconds) = thread::scope(|scope| {
        let load =
            scope.spawn(|| clients::http_while(&client, vip, 2, || going.load(Ordering::Relaxed)));
        let outcome = die_and_be_noticed(stage);
        going.store(false, Ordering::Relaxed);
        let window = load.join().expect("clients");
        outcome.map(|seconds| (window, seconds))
    })?;
    println!("  b2 was out of the table after {seconds:.1} s.");
    println!(
        "  printed apart: in that window {} new connections were answered by the others, {} met b2 and failed;",
        window.answered(),
        window.failed()
    );
    let broken = round_trips(&mut held);
    let lost = broken.get("b2").copied().unwrap_or(0);
    println!("  printed apart: {lost} of the {on_b2} open connections to b2 died with it.");
    println!();
    let others: usize = broken
        .iter()
        .filter(|(name, _)| *name != "b2")
        .map(|(_, count)| count)
        .sum();
    let claim = format!(
        "all {} open connections to the other backends are unharmed",
        2 * HELD - on_b2
    );
    score.claim(others == 0, &claim);

    println!("\n{CONNECTIONS} new connections per family, now that b2 is out:\n");
    none_goes_to(stage, score, "b2");

    let back = Instant::now();
    stage.servers[1] = Servers::start(&stage.topology.backends[1], &stage.folder, stage.way)?;
    wait_everywhere(stage, "ready")?;
    println!(
        "\nb2's servers are started again: back in the table after {:.1} s.",
        back.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Opens new connections and claims that none meets this backend.
fn none_goes_to(stage: &Stage, score: &mut Score, backend: &str) {
    let mut new = Answers::default();
    for family in Family::BOTH {
        new.absorb(clients::http(
            stage.client(),
            stage.vip(family, HTTP),
            CONNECTIONS,
            4,
        ));
    }
    answers_table(&new);
    score.connections(&new);
    println!();
    score.claim(
        !new.by_backend.contains_key(backend),
        &format!("no new connection went to {backend}"),
    );
}

/// Kills the servers of b2; the seconds until no table names them.
fn die_and_be_noticed(stage: &mut Stage) -> Result<f32> {
    let death = Instant::now();
    stage.servers[1].kill()?;
    wait_everywhere(stage, "down")?;
    Ok(death.elapsed().as_secs_f32())
}

fn wait_everywhere(stage: &Stage, state: &str) -> Result<()> {
    for (family, port) in all_services() {
        let service = service_name(family, port);
        stage
            .balancer
            .wait_for_state(&service, stage.target(family, 1, port), state)?;
    }
    Ok(())
}

/// Those whose connections this part looks at.
fn all_services() -> [(Family, u16); 4] {
    [
        (Family::V4, HTTP),
        (Family::V6, HTTP),
        (Family::V4, ECHO),
        (Family::V6, ECHO),
    ]
}

fn hold(stage: &Stage) -> Result<Vec<Held>> {
    println!("{HELD} connections per family to the echo service are opened and kept.");
    Family::BOTH
        .into_iter()
        .map(|family| Held::open(stage.client(), stage.vip(family, ECHO), HELD))
        .collect()
}

fn count(held: &[Held], backend: &str) -> usize {
    held.iter()
        .filter_map(|held| held.by_backend().get(backend).copied())
        .sum()
}

fn round_trips(held: &mut [Held]) -> BTreeMap<String, usize> {
    let mut broken = BTreeMap::new();
    for (name, count) in held.iter_mut().flat_map(Held::round_trip) {
        *broken.entry(name).or_default() += count;
    }
    broken
}
