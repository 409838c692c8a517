//! Contract A11: HTTP on the health check port of each Service that has one, for those who give its VIP to nodes.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{Response, StatusCode, body::Bytes};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::http::{self, Answer, Call, Handler};
use crate::{
    cluster::{
        events::{Warning, Warnings},
        facts::Kind,
    },
    config::HealthCheckPorts,
    desired::kubernetes::{HealthCheck, HealthChecks},
    state::State,
};

/// Where kube-proxy tells of its own health: who answers there serves the ports as well.
const KUBE_PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_256);

/// Between two looks for kube-proxy, and two tries for a port that somebody else has.
const LOOK: Duration = Duration::from_secs(10);

/// Connections that wait for their turn.
const BACKLOG: i32 = 64;

/// What serves the ports.
#[derive(Debug)]
pub struct HealthPorts {
    pub who: HealthCheckPorts,
    pub checks: watch::Receiver<HealthChecks>,
    pub state: watch::Receiver<Arc<State>>,
    /// Ports that cannot be had.
    pub warnings: Warnings,
}

impl HealthPorts {
    /// Serves until `stop`: ports come and go with their Services.
    pub async fn serve(mut self, stop: CancellationToken) {
        let mut open: BTreeMap<u16, CancellationToken> = BTreeMap::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.checks.changed() => if changed.is_err() { break },
                _ = looks.tick() => {}
                () = stop.cancelled() => break,
            }
            let wanted = if self.is_ours().await {
                Arc::clone(&self.checks.borrow_and_update())
            } else {
                HealthChecks::default()
            };
            open.retain(|port, served| {
                let stays = wanted.contains_key(port);
                if !stays {
                    served.cancel();
                }
                stays
            });
            let mut failed = HashSet::new();
            for (port, check) in wanted.iter() {
                if open.contains_key(port) {
                    continue;
                }
                match self.open(*port, &stop) {
                    Ok(served) => {
                        open.insert(*port, served);
                    }
                    Err(error) => {
                        failed.insert(taken(check, &error));
                    }
                }
            }
            self.warnings.set(failed);
        }
        for served in open.into_values() {
            served.cancel();
        }
    }

    async fn is_ours(&self) -> bool {
        match self.who {
            HealthCheckPorts::Always => true,
            HealthCheckPorts::Never => false,
            HealthCheckPorts::Auto => {
                let answer = timeout(Duration::from_secs(1), TcpStream::connect(KUBE_PROXY)).await;
                !matches!(answer, Ok(Ok(_)))
            }
        }
    }

    /// Both families, or none.
    fn open(&self, port: u16, stop: &CancellationToken) -> std::io::Result<CancellationToken> {
        let v4 = listener(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
        let v6 = listener(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
        let served = stop.child_token();
        for (listener, is_v4) in [(v4, true), (v6, false)] {
            let answers = Answers {
                port,
                v4: is_v4,
                checks: self.checks.clone(),
                state: self.state.clone(),
            };
            let stop = served.clone();
            tokio::spawn(async move { http::serve(&listener, Arc::new(answers), stop).await });
        }
        Ok(served)
    }
}

fn taken(check: &HealthCheck, error: &std::io::Error) -> Warning {
    Warning {
        kind: Kind::Service,
        object: check.service.clone(),
        uid: Arc::clone(&check.uid),
        reason: "FailedToStartServiceHealthcheck",
        message: format!(
            "healthCheckNodePort {}: {error}; whoever has the port keeps it, and is asked for this Service's health",
            check.port
        ),
    }
}

/// Of one family only, so that each can tell of its own endpoints.
fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What one port answers in one family, whatever the path.
#[derive(Debug)]
struct Answers {
    port: u16,
    v4: bool,
    checks: watch::Receiver<HealthChecks>,
    state: watch::Receiver<Arc<State>>,
}

impl Handler for Answers {
    async fn answer(&self, _: Call) -> Answer {
        let healthy = self.state.borrow().apply.error.is_none();
        let checks = Arc::clone(&self.checks.borrow());
        match checks.get(&self.port) {
            Some(check) => answer(check, self.v4, healthy),
            None => http::refusal(StatusCode::NOT_FOUND, "no Service has this port any more"),
        }
    }
}

fn answer(check: &HealthCheck, v4: bool, healthy: bool) -> Answer {
    let local = if v4 {
        check.local_endpoints4
    } else {
        check.local_endpoints6
    };
    let body = json!({
        "service": {"namespace": &*check.service.namespace, "name": &*check.service.name},
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    });
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    if local == 0 || !healthy {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = answer.headers_mut();
    for (name, value) in [
        ("content-type", "application/json".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", local.to_string()),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::mpsc,
    };

    use super::*;
    use crate::cluster::facts::ObjectKey;

    fn check(port: u16, four: usize, six: usize) -> HealthCheck {
        HealthCheck {
            service: ObjectKey::new("default", "web"),
            uid: "uid".into(),
            port: port.try_into().unwrap(),
            local_endpoints4: four,
            local_endpoints6: six,
        }
    }

    /// A11.2, A11.3
    #[tokio::test]
    async fn the_answer_is_that_of_kube_proxy() {
        for (local, healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let answer = answer(&check(32_000, local, 7), true, healthy);
            assert_eq!(answer.status().as_u16(), code);
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(
                header("x-load-balancing-endpoint-weight"),
                local.to_string()
            );
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                body,
                json!({
                    "service": {"namespace": "default", "name": "web"},
                    "localEndpoints": local, "serviceProxyHealthy": healthy,
                })
            );
        }
    }

    async fn ask(address: IpAddr, port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((address, port)).await.ok()?;
        let request = "GET /anything HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.lines().next().map(str::to_owned)
    }

    async fn becomes(address: IpAddr, port: u16, expected: Option<&str>) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let mut last = ask(address, port).await;
        while last.as_deref() != expected && tokio::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
            last = ask(address, port).await;
        }
        if last.as_deref() == expected {
            return;
        }
        panic!("{address} port {port}: {last:?}, not {expected:?}");
    }

    /// A11.1, A11.4
    #[tokio::test]
    async fn ports_open_and_close_with_their_services_and_a_taken_one_is_told() {
        let free = |()| {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let [port, second] = [(), ()].map(free);
        let taken = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let (checks_in, checks) = watch::channel(HealthChecks::default());
        let (_state, state) = watch::channel(Arc::new(State::default()));
        let (warnings_in, mut warnings) = mpsc::channel(4);
        let ports = HealthPorts {
            who: HealthCheckPorts::Always,
            checks,
            state,
            warnings: Warnings::new(warnings_in),
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(ports.serve(stop.clone()));
        let all = [check(port, 1, 0), check(taken_port, 1, 0)];
        let all = all.map(|check| (check.port.get(), check));
        checks_in.send_replace(Arc::new(all.into()));
        let (four, six) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        becomes(four, port, Some("HTTP/1.1 200 OK")).await;
        becomes(six, port, Some("HTTP/1.1 503 Service Unavailable")).await;
        let warning = warnings.recv().await.unwrap();
        assert_eq!(warning.reason, "FailedToStartServiceHealthcheck");
        assert!(
            warning.message.contains(&taken_port.to_string()),
            "{}",
            warning.message
        );

        checks_in.send_replace(Arc::new([(port, check(port, 0, 0))].into()));
        becomes(four, port, Some("HTTP/1.1 503 Service Unavailable")).await;
        checks_in.send_replace(Arc::new([(second, check(second, 1, 0))].into()));
        becomes(four, port, None).await;
        becomes(four, second, Some("HTTP/1.1 200 OK")).await;
        stop.cancel();
        serving.await.unwrap();
        becomes(four, second, None).await;
    }
}
