//! The command line and the admin socket: each verb against real maps and an agent that is none, and without one.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    is_root,
    netns::{Folder, Netns},
    place::Place,
    servers::sibling,
    world,
};
use lb_userspace::{
    attach::Clock,
    observe::{self, MetricsEnd, Socket, Sources},
    state::{
        Apply, Attached, Command as Told, Handle, Interface, MapUse, Refused, Request, Source,
        SourceState, State,
    },
};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

/// Everything an agent serves, without the agent: its state is made up, the maps are real.
struct Served {
    netns: Netns,
    place: Place,
    folder: Folder,
    metrics: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start() -> Result<Self> {
        let netns = Netns::create("cli")?;
        let place = netns.enter(|| Place::make(&netns))?;
        let folder = Folder::create("cli")?;
        let clock = Arc::new(Clock::load()?);
        let maps = place.installation.maps().to_owned();
        let told = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = {
            let (netns, told, stop) = (netns.clone(), Arc::clone(&told), stop.clone());
            let path = folder.file("millrace.sock");
            thread::spawn(move || {
                netns.enter(|| {
                    let runtime = tokio::runtime::Runtime::new().expect("runtime");
                    runtime.block_on(async {
                        let (_state, state) = watch::channel(Arc::new(state()));
                        let (commands, requests) = mpsc::channel(1);
                        tokio::spawn(answer(requests, told));
                        let socket = Socket::bind(&path).expect("socket");
                        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
                        let address = listener.local_addr().expect("address");
                        let sources = Sources {
                            agent: Handle { state, commands },
                            maps,
                            clock,
                        };
                        let metrics = MetricsEnd {
                            listener,
                            per_backend: true,
                        };
                        ready.send(address).expect("the test waits");
                        let served = observe::serve(sources, socket, Some(metrics), stop).await;
                        served.expect("maps");
                    });
                });
            })
        };
        Ok(Self {
            netns,
            place,
            metrics: started.recv()?,
            folder,
            told,
            stop,
            thread: Some(thread),
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.file("millrace.sock")
    }

    /// `millrace ARGUMENTS`: exit code, standard output, standard error.
    fn millrace(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let mut command = Command::new(sibling("millrace")?);
        command.args(arguments).arg("--socket").arg(self.socket());
        said(&self.netns.output(&mut command)?)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let (code, out, err) = self.millrace(&[arguments, &["-o", "json"]].concat())?;
        ensure!(code == 0, "{arguments:?}: {code}: {err}");
        Ok(serde_json::from_str(&out)?)
    }

    fn get(&self, path: &str) -> Result<String> {
        self.netns.enter(|| {
            let mut stream = std::net::TcpStream::connect(self.metrics)?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn said(output: &Output) -> Result<(i32, String, String)> {
    Ok((
        output.status.code().context("killed")?,
        String::from_utf8(output.stdout.clone())?,
        String::from_utf8(output.stderr.clone())?,
    ))
}

fn state() -> State {
    let services = world::services().into_iter();
    State {
        node: "lb-1".into(),
        version: "0.1.0".into(),
        abi: 1,
        kernel: "6.1.0".into(),
        interfaces: vec![Interface {
            name: "eth0".into(),
            index: Some(2),
            driver: "veth".into(),
            mtu: 1500,
            attached: Attached::Native,
        }],
        sources: vec![Source {
            name: "lb.yaml".into(),
            state: SourceState::Synced,
            since: 0,
            objects: 6,
            skipped: 0,
            error: None,
        }],
        maps: vec![MapUse {
            name: "frontends".into(),
            used: 14,
            max: 64,
        }],
        services: services
            .map(|service| (service.name.clone(), Arc::new(service)))
            .collect(),
        apply: Apply {
            whole: true,
            ..Apply::default()
        },
        ..State::default()
    }
}

/// Does nothing, but remembers what it was told.
async fn answer(mut requests: mpsc::Receiver<Request>, told: Arc<Mutex<Vec<Told>>>) {
    while let Some(Request { command, reply }) = requests.recv().await {
        let answer = match &command {
            Told::Drain { service, .. } if service == "nat4" => Ok(true),
            Told::Drain { service, .. } => Err(Refused::NoService(service.clone())),
            _ => Ok(false),
        };
        told.lock().expect("lock").push(command);
        drop(reply.send(answer));
    }
}

#[test]
fn every_verb_speaks_with_the_agent() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut served = Served::start()?;

    let (code, out, _) = served.millrace(&["status"])?;
    assert_eq!(code, 0);
    for line in [
        "INTERFACE  DRIVER  MTU   XDP     VIPS  RX/s  TX/s  DROP/s",
        "frontends  14    64",
        "flows      0     65536   0%",
    ] {
        assert!(out.contains(line), "no {line:?} in\n{out}");
    }

    let (code, out, _) = served.millrace(&["services"])?;
    assert_eq!(code, 0);
    assert!(
        out.contains("nat4    192.0.2.10:443/tcp         nat    -"),
        "{out}"
    );
    let services = served.json(&["services"])?;
    assert_eq!(services.as_array().map(Vec::len), Some(26));
    assert_eq!(https(&services)["packets"], 0);

    let (code, out, _) = served.millrace(&["backends", "ipip"])?;
    assert_eq!(code, 0);
    assert!(
        out.contains("10.0.0.11:8080         -     0    100     ready  16     25.0%"),
        "{out}"
    );
    let (code, _, err) = served.millrace(&["backends", "nobody's"])?;
    assert_eq!(code, 11);
    assert!(
        err.contains("error: no service nobody's: `millrace services` lists them"),
        "{err}"
    );

    let syn = ["explain", "--from", "198.51.100.7:50312", "--to"];
    let ask = |to: &str| served.millrace(&[&syn[..], &[to]].concat());
    let (code, out, _) = ask("192.0.2.12:80/tcp")?;
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("STEP"), "{out}");
    assert!(out.contains("frontend  l2"), "{out}");
    assert!(out.contains("VERDICT"), "{out}");
    let (code, out, _) = ask("192.0.2.10:80/tcp")?;
    assert_eq!(code, 1);
    assert!(
        out.contains("VERDICT  ANSWER  unknown_port: the VIP has no frontend on this port"),
        "{out}"
    );
    let (code, out, _) = ask("192.0.2.10:443/tcp")?;
    assert_eq!(code, 0, "{out}");
    assert_eq!(out.matches("\nbackend").count(), 1, "{out}");
    assert_eq!(ask("203.0.113.1:80/tcp")?.0, 3);
    assert_eq!(ask("[2001:db8::1]:80")?.0, 2, "mixed families");

    let (_, ingress) = served.place.interface("eth0")?;
    let syn = syn_frame(&served.place)?;
    served
        .netns
        .clone()
        .enter(|| served.place.inject(&syn, ingress))?;
    let (code, out, _) = served.millrace(&["flows", "--to", "192.0.2.10:443"])?;
    assert_eq!(code, 0);
    let row = out.lines().nth(1).context("a flow")?;
    assert!(
        row.starts_with("tcp    198.51.100.8:4000  192.0.2.10:443  10."),
        "{out}"
    );
    assert!(row.contains("half"), "{out}");
    let none = served.json(&["flows", "--from", "198.51.100.9"])?;
    assert_eq!(none["flows"].as_array().map(Vec::len), Some(0));
    assert_eq!(served.millrace(&["flows", "--to", "everywhere"])?.0, 2);
    assert_eq!(https(&served.json(&["services"])?)["newFlows"], 1);

    assert_eq!(served.millrace(&["drain", "nat4", "10.0.0.11:8080"])?.0, 0);
    assert_eq!(
        served.millrace(&["undrain", "other", "10.0.0.11:8080"])?.0,
        11
    );
    assert_eq!(served.millrace(&["bypass", "on"])?.0, 0);
    let told = served.told.lock().expect("lock").clone();
    let backend = "10.0.0.11:8080".parse()?;
    let drain = |service: &str, on| Told::Drain {
        service: service.into(),
        backend,
        on,
    };
    let wanted = [
        drain("nat4", true),
        drain("other", false),
        Told::Bypass { on: true },
    ];
    assert_eq!(told, wanted);
    Ok(())
}

/// The IPv4 frontend of `nat4` for HTTPS.
fn https(services: &Value) -> &Value {
    let mut all = services.as_array().into_iter().flatten();
    all.find(|one| one["frontend"] == "192.0.2.10:443/tcp")
        .unwrap_or(&Value::Null)
}

fn syn_frame(place: &Place) -> Result<Vec<u8>> {
    let (mac, _) = place.interface("eth0")?;
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac)
        .ipv4([198, 51, 100, 8], [192, 0, 2, 10], 64)
        .tcp(4000, 443, 1, 1000)
        .syn()
        .write(&mut frame, &[])?;
    Ok(frame)
}

#[test]
fn the_socket_is_for_root_and_survives_garbage() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let served = Served::start()?;
    let mode = fs::metadata(served.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let requests: [&[u8]; 6] = [
        b"\0\xff\x16\x03\x01 no http at all\r\n\r\n",
        b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{\"on\":tru",
        b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]",
        b"POST /v1/explain HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{\"frame\":\"00\"}\n",
        b"DELETE /v1/status HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    for request in requests {
        let mut stream = UnixStream::connect(served.socket())?;
        stream.write_all(request)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        let answer = String::from_utf8_lossy(&answer).into_owned();
        // A body that ends early is met by silence.
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused, "{request:?}: {answer}");
    }
    assert!(served.told.lock().expect("lock").is_empty());
    assert_eq!(served.millrace(&["status"])?.0, 0);
    Ok(())
}

#[test]
fn metrics_and_health_are_served() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let served = Served::start()?;
    let metrics = served.get("/metrics")?;
    for line in [
        "millrace_map_max_entries{map=\"flows\"} 65536",
        "millrace_frontend_packets_total{namespace=\"\",service=\"nat4\",port=\"443\",protocol=\"tcp\",family=\"ipv4\"} 0",
        "millrace_backends{namespace=\"\",service=\"ipip\",state=\"ready\"} 4",
        "millrace_source_synced{source=\"lb.yaml\"} 1",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    for path in ["/healthz", "/livez", "/readyz"] {
        assert!(served.get(path)?.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(served.get("/v1/status")?.starts_with("HTTP/1.1 404"));
    Ok(())
}

/// `millrace ARGUMENTS` with no agent anywhere.
fn alone(netns: Option<&Netns>, arguments: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(sibling("millrace")?);
    command
        .args(arguments)
        .env("MILLRACE_SOCKET", "/nonexistent/millrace.sock");
    let output = match netns {
        Some(netns) => netns.output(&mut command)?,
        None => command.output()?,
    };
    said(&output)
}

#[test]
fn without_an_agent_the_fix_is_named() -> Result<()> {
    for verb in ["services", "flows", "backends"] {
        let (code, out, err) = alone(None, &[verb])?;
        assert_eq!((code, out.as_str()), (4, ""));
        assert!(
            err.contains("start one with `millrace run --config FILE`"),
            "{err}"
        );
    }
    for bad in [
        &["status", "--colour"][..],
        &["drain", "web"],
        &["explain", "--from", "x"],
    ] {
        assert_eq!(alone(None, bad)?.0, 2, "{bad:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = alone(None, &["completions", shell])?;
        assert_eq!(code, 0);
        assert!(out.contains("undrain"), "{shell}");
    }
    Ok(())
}

#[test]
fn status_without_an_agent_tells_what_the_pins_do() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let netns = Netns::create("pins")?;
    let place = netns.enter(|| Place::make(&netns))?;
    let pins = place.pins.display().to_string();
    let (code, out, err) = alone(Some(&netns), &["status", "--pin-root", &pins])?;
    assert_eq!(code, 4, "{err}");
    assert!(out.contains("agent down  bypass off"), "{out}");
    assert!(out.contains("1500  native  18"), "{out}");
    assert!(err.contains("no agent answers"), "{err}");
    Ok(())
}

#[test]
fn check_tells_what_a_file_would_do() -> Result<()> {
    let folder = Folder::create("check")?;
    let file = folder.file("lb.yaml");
    let good = "\
apiVersion: config.millrace.io/v1alpha1
kind: MillraceConfiguration
interfaces: [lo]
services:
- name: web
  frontends: [\"192.0.2.10:443/tcp\"]
  mode: nat
  backends:
  - {address: \"10.255.0.11:8443\"}
";
    let path = file.display().to_string();
    fs::write(&file, good)?;
    let (code, out, err) = alone(None, &["check", &path])?;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("good; on lo\n"), "{out}");
    assert!(out.contains("web   192.0.2.10:443/tcp  nat "), "{out}");

    fs::write(&file, good.replace("192.0.2.10", "127.0.0.1"))?;
    let (code, _, err) = alone(None, &["check", &path])?;
    assert_eq!(code, 2);
    assert!(err.contains(&format!("{path}:6:")), "{err}");
    assert!(err.contains("services[0].frontends[0]"), "{err}");

    let (code, _, err) = alone(None, &["check", "/nonexistent/lb.yaml"])?;
    assert_eq!(code, 2);
    assert!(err.contains("/nonexistent/lb.yaml"), "{err}");
    Ok(())
}
