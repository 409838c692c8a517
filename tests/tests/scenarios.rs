//! Golden scenarios: a config and what happens to it in; what the maps hold after each step out, beside the scenario in
//! a file. The same steps on real maps must give the same text. `MILLRACE_BLESS=1` writes the files anew: read the
//! difference before you commit it.

#[path = "scenarios/lines.rs"]
mod lines;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_tests::{host, is_root, netns::unique_name};
use lb_userspace::{
    attach::{Installation, Options},
    config::{Config, ConfigErrors},
    dataplane::{Dataplane, Fake, Faulty},
    desired::Drains,
    health::Change,
    net::{Facts, Neighbour, Update},
    plan::Limits,
    reconcile::{Engine, Start},
};
use serde::Deserialize;

use lines::lines;

/// One file of `scenarios/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows.
    shows: String,
    config: String,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Step {
    /// Another config; refused or taken whole.
    Config(String),
    Down(Target),
    Up(Target),
    Drain(Target),
    Undrain(Target),
    /// A neighbour gets another link-layer address, the last byte of which is given; none: it stops answering.
    Neighbour {
        address: IpAddr,
        mac: Option<u8>,
    },
    /// A route by a gateway appears.
    Route {
        to: ipnet::IpNet,
        via: IpAddr,
    },
    RouteGone {
        to: ipnet::IpNet,
        via: IpAddr,
    },
    Bypass(bool),
    /// The op after the next so many fails.
    Fault(usize),
    /// The agent ends and another one takes the maps over, with the same config or with another.
    Restart,
    RestartWith(String),
}

#[derive(Deserialize, Clone)]
struct Target {
    service: String,
    backend: SocketAddr,
}

#[test]
fn scenarios_come_out_as_written() -> Result<()> {
    for (name, scenario) in scenarios()? {
        let config = parse(&scenario.config)?;
        let fake = Fake::new(config.limits);
        let text = play(&scenario, config, fake).with_context(|| name.clone())?;
        let golden = folder().join(&name).with_extension("out");
        if std::env::var_os("MILLRACE_BLESS").is_some() {
            fs::write(&golden, &text)?;
            continue;
        }
        let expected = fs::read_to_string(&golden).with_context(|| golden.display().to_string())?;
        ensure!(
            text == expected,
            "{name}: {}",
            first_difference(&expected, &text)
        );
    }
    Ok(())
}

#[test]
fn scenarios_come_out_alike_on_real_maps() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    for (name, scenario) in scenarios()? {
        let config = parse(&scenario.config)?;
        let maps = RealMaps::make(config.limits)?;
        let expected = play(&scenario, config.clone(), Fake::new(config.limits))?;
        let bpf = maps.installation.dataplane()?;
        let text = play(&scenario, config, bpf).with_context(|| name.clone())?;
        ensure!(
            text == expected,
            "{name}: {}",
            first_difference(&expected, &text)
        );
    }
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn scenarios() -> Result<Vec<(String, Scenario)>> {
    let mut files: Vec<_> = fs::read_dir(folder())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "no scenarios");
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path)?;
            let scenario = serde_saphyr::from_str(&text)
                .map_err(|error| anyhow!("{}: {error}", path.display()))?;
            let name = path
                .file_stem()
                .context("name")?
                .to_string_lossy()
                .into_owned();
            Ok((name, scenario))
        })
        .collect()
}

fn parse(services: &str) -> Result<Config> {
    let head = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n\
                clusterKey: 000102030405060708090a0b0c0d0e0f\n";
    // Small maps are made faster.
    let limits = if services.contains("limits:") {
        ""
    } else {
        "limits: {frontends: 64, backends: 256, flows: 4096}\n"
    };
    Ok(Config::parse(
        &format!("{head}{limits}{services}"),
        "lb.yaml",
    )?)
}

/// Pinned maps without any program attached; gone with the value.
struct RealMaps {
    installation: Installation,
    folders: [PathBuf; 2],
}

impl RealMaps {
    fn make(limits: Limits) -> Result<Self> {
        let pin_root = Path::new("/sys/fs/bpf").join(unique_name("scenario"));
        let run_folder = std::env::temp_dir().join(unique_name("scenario"));
        let installation = Installation::open(&Options {
            pin_root: pin_root.clone(),
            run_folder: run_folder.clone(),
            limits,
            ..Options::default()
        })?;
        Ok(Self {
            installation,
            folders: [pin_root, run_folder],
        })
    }
}

impl Drop for RealMaps {
    fn drop(&mut self) {
        for folder in &self.folders {
            drop(fs::remove_dir_all(folder));
        }
    }
}

/// [`host::facts`]; everyone on link answers with a MAC that ends in the last byte of its address.
fn facts(config: &Config) -> Result<Facts> {
    let mut facts = host::facts();
    for gateway in host::GATEWAYS {
        facts.apply(neighbour(gateway.parse()?, Some(1)));
    }
    for backend in config.services.iter().flat_map(|service| &service.backends) {
        facts.apply(neighbour(backend.address, Some(last_byte(backend.address))));
    }
    Ok(facts)
}

fn last_byte(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    }
}

fn neighbour(address: IpAddr, mac: Option<u8>) -> Update {
    let neighbour = mac.map(|last| Neighbour {
        mac: [2, 0, 0, 0, 0, last],
        permanent: false,
        fresh: true,
    });
    Update::Neighbour(host::ETH0, address, neighbour)
}

/// Plays a scenario; gives the maps' contents at the start and what each step changed in them.
fn play<D: Dataplane>(scenario: &Scenario, config: Config, dataplane: D) -> Result<String> {
    let facts = facts(&config)?;
    let mut play = Play {
        engine: start(config, facts, Drains::default(), Faulty::new(dataplane))?,
        down: BTreeSet::new(),
        text: format!("# {}\n", scenario.shows),
        before: BTreeSet::new(),
    };
    play.flush("start".into())?;
    for (number, step) in scenario.steps.iter().enumerate() {
        let mut title = format!("step {}", number + 1);
        if let Step::Fault(ops) = step {
            play.engine.dataplane_mut().fail_after(*ops);
            continue;
        }
        if let Step::Restart = step {
            let config = play.engine.config().clone();
            play = play.restart(config)?;
        } else if let Step::RestartWith(services) = step {
            play = play.restart(parse(services)?)?;
        } else if let Err(refusal) = play.step(step.clone()) {
            write!(title, ": {refusal}")?;
        }
        play.flush(title)?;
    }
    Ok(play.text)
}

fn start<D: Dataplane>(
    config: Config,
    facts: Facts,
    drains: Drains,
    dataplane: D,
) -> Result<Engine<D>> {
    let start = Start {
        hash_key: config.cluster_key.map(|key| key.0),
        config,
        facts,
        drains,
        hz: 1000,
        node: String::new(),
        agents: None,
    };
    Ok(Engine::start(start, dataplane)?)
}

struct Play<D> {
    engine: Engine<Faulty<D>>,
    /// What health checks would find again after a restart.
    down: BTreeSet<(String, SocketAddr)>,
    text: String,
    /// Lines that the maps came to after the last step.
    before: BTreeSet<String>,
}

impl<D: Dataplane> Play<D> {
    /// Takes one step; an error is a refusal that the scenario is to show.
    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Config(services) => {
                let config = parse(&services)?;
                let backends: Vec<_> = config
                    .services
                    .iter()
                    .flat_map(|one| &one.backends)
                    .map(|one| one.address)
                    .collect();
                self.engine.reload(config).map_err(|errors| ConfigErrors {
                    file: "lb.yaml".into(),
                    errors,
                })?;
                let met = backends
                    .into_iter()
                    .map(|ip| neighbour(ip, Some(last_byte(ip))));
                self.engine.network(met.collect());
            }
            Step::Down(Target { service, backend }) => {
                self.down.insert((service, backend));
                self.tell_health(false);
            }
            Step::Up(Target { service, backend }) => {
                self.down.remove(&(service.clone(), backend));
                self.engine.health(vec![Change {
                    service: service.as_str().into(),
                    backend,
                    up: true,
                }]);
            }
            Step::Drain(target) => {
                self.engine.drain(&target.service, target.backend, true)?;
            }
            Step::Undrain(target) => {
                self.engine.drain(&target.service, target.backend, false)?;
            }
            Step::Neighbour { address, mac } => {
                self.engine.network(vec![neighbour(address, mac)]);
            }
            Step::Route { to, via } => {
                let met = neighbour(via, Some(last_byte(via)));
                let route = Update::AddRoute(host::route(to, Some(via)));
                self.engine.network(vec![route, met]);
            }
            Step::RouteGone { to, via } => {
                let route = Update::RemoveRoute(host::route(to, Some(via)));
                self.engine.network(vec![route]);
            }
            Step::Bypass(on) => {
                self.engine.set_bypass(on, 0);
            }
            Step::Fault(_) | Step::Restart | Step::RestartWith(_) => {}
        }
        Ok(())
    }

    fn tell_health(&mut self, up: bool) {
        let changes = self.down.iter().map(|(service, backend)| Change {
            service: service.as_str().into(),
            backend: *backend,
            up,
        });
        self.engine.health(changes.collect());
    }

    /// Another agent on the same maps.
    fn restart(self, config: Config) -> Result<Self> {
        let facts = self.engine.facts().clone();
        let drains = self.engine.drains().clone();
        let mut play = Self {
            engine: start(config, facts, drains, self.engine.into_dataplane())?,
            ..self
        };
        play.tell_health(false);
        Ok(play)
    }

    /// Brings the maps after the facts, and notes what became different in them.
    fn flush(&mut self, mut title: String) -> Result<()> {
        if let Err(error) = self.engine.flush() {
            let cause = error.to_string();
            let cause = cause.rsplit(": ").next().unwrap_or_default().to_owned();
            write!(title, ": {cause}, and again")?;
            self.engine.flush()?;
        }
        ensure!(!self.engine.is_behind(), "nothing is left to do");
        let after = lines(&self.engine.dataplane_mut().dump()?);
        writeln!(self.text, "\n== {title}")?;
        for gone in self.before.difference(&after) {
            writeln!(self.text, "- {gone}")?;
        }
        for new in after.difference(&self.before) {
            writeln!(self.text, "+ {new}")?;
        }
        self.before = after;
        Ok(())
    }
}

fn first_difference(expected: &str, found: &str) -> String {
    let pairs = expected.lines().zip(found.lines());
    let different = pairs
        .enumerate()
        .find(|(_, (expected, found))| expected != found);
    different.map_or_else(
        || format!("one ends early:\n{found}"),
        |(line, (expected, found))| {
            format!("line {}: expected {expected}\nfound {found}", line + 1)
        },
    )
}
