//! Real kernels on both sides of the balancer learn what fits: path MTU in both directions, fragments, ICMP errors, echo.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    clients::{self, PATIENCE},
    is_root,
    netns::Netns,
    servers::{self, DNS, ECHO, HTTP},
    stage::{Stage, Way},
    topology::{Family, Shape},
};

/// Bytes sent and echoed.
const TRANSFER: usize = 2 << 20;

/// The path MTU that a namespace has learned for an address.
fn learned(netns: &Netns, to: SocketAddr) -> Result<Option<String>> {
    let to = to.ip().to_string();
    let route = netns.run(Command::new("ip").args(["route", "get", &to]))?;
    let mut words = route.split_whitespace();
    Ok(words
        .find(|word| *word == "mtu")
        .and_then(|_| words.next())
        .map(str::to_owned))
}

/// Sends a lot to an echo server and reads it back.
fn echo(server: SocketAddr) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&server, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(connection.try_clone()?);
    let mut name = String::new();
    answers.read_line(&mut name)?;
    let sent: Vec<u8> = (0..TRANSFER as u32 / 4)
        .flat_map(u32::to_be_bytes)
        .collect();
    let received = thread::scope(|scope| {
        let sent = &sent;
        let writer = scope.spawn(move || connection.write_all(sent));
        let mut received = vec![0; TRANSFER];
        answers.read_exact(&mut received).context("read")?;
        writer
            .join()
            .expect("the writer does not panic")
            .context("write")?;
        anyhow::Ok(received)
    })?;
    ensure!(received == sent, "another content");
    Ok(())
}

fn a_client_learns_what_fits_a_tunnel(outer: Family, mtu: &str) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::IpipOver(outer), Shape::OneArm)?;
    // As large as the network behind the balancer: the tunnel has no room of its own.
    stage.client().ip(["link set eth0 mtu 1500"])?;
    for family in Family::BOTH {
        let vip = stage.vip(family, ECHO);
        assert_eq!(learned(stage.client(), vip)?, None);
        stage
            .client()
            .enter(|| echo(vip))
            .with_context(|| format!("{family:?}"))?;
        assert_eq!(
            learned(stage.client(), vip)?.as_deref(),
            Some(mtu),
            "{family:?}"
        );
    }
    Ok(())
}

#[test]
fn a_client_learns_what_fits_a_tunnel_over_ipv4() -> Result<()> {
    a_client_learns_what_fits_a_tunnel(Family::V4, "1480")
}

#[test]
fn a_client_learns_what_fits_a_tunnel_over_ipv6() -> Result<()> {
    a_client_learns_what_fits_a_tunnel(Family::V6, "1460")
}

/// Backends hear from a router of the client's that their packets are too big, by way of the balancer.
fn a_backend_learns_what_fits_the_way_to_the_client(way: Way) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(way, Shape::OneArm)?;
    stage.client().ip(["link set eth0 mtu 1500"])?;
    stage.topology.router.ip(["link set c1 mtu 1300"])?;
    let sent = servers::write_big_file(&stage.folder, servers::BIG_FILE_BYTES)?;
    let received = stage.folder.file("received");
    let path = received.display().to_string();
    for family in Family::BOTH {
        let url = format!("http://{}/big", stage.vip(family, HTTP));
        clients::curl(stage.client(), &[&url, "-o", &path])?;
        ensure!(
            fs::read(&sent)? == fs::read(&received)?,
            "{url}: another content"
        );
    }
    Ok(())
}

#[test]
fn a_backend_of_nat_learns_what_fits_the_way_to_the_client() -> Result<()> {
    a_backend_learns_what_fits_the_way_to_the_client(Way::Nat)
}

#[test]
fn a_backend_of_ipip_learns_what_fits_the_way_to_the_client() -> Result<()> {
    a_backend_learns_what_fits_the_way_to_the_client(Way::IpipOver(Family::V4))
}

#[test]
fn a_backend_of_l2_learns_what_fits_the_way_to_the_client() -> Result<()> {
    a_backend_learns_what_fits_the_way_to_the_client(Way::L2)
}

/// Sends datagrams larger than any frame and expects each back, behind the backend's name.
fn large_datagrams(server: SocketAddr) -> Result<()> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    for length in [1600_usize, 4000, 9000] {
        for _ in 0..10 {
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            socket.send(&sent)?;
            let mut buffer = vec![0; 1 << 16];
            let received = socket
                .recv(&mut buffer)
                .with_context(|| format!("{length} bytes"))?;
            ensure!(
                buffer[..received].ends_with(&sent),
                "{length} bytes: another content"
            );
            ensure!(received > length, "no name");
        }
    }
    Ok(())
}

fn datagrams_larger_than_a_frame_come_and_go(way: Way) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(way, Shape::OneArm)?;
    if way != Way::Nat {
        // Fragments that have room for an outer header, from a client that takes larger ones.
        stage.client().ip([
            "link set eth0 mtu 1500",
            "route replace default via 198.51.100.1 mtu 1400",
            "route replace default via 2001:db8:a::1 mtu 1400",
        ])?;
    }
    for family in Family::BOTH {
        let vip = stage.vip(family, ECHO);
        stage
            .client()
            .enter(|| large_datagrams(vip))
            .with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

#[test]
fn datagrams_larger_than_a_frame_come_and_go_by_nat() -> Result<()> {
    datagrams_larger_than_a_frame_come_and_go(Way::Nat)
}

#[test]
fn datagrams_larger_than_a_frame_come_and_go_by_ipip() -> Result<()> {
    datagrams_larger_than_a_frame_come_and_go(Way::IpipOver(Family::V4))
}

#[test]
fn a_closed_port_of_a_backend_is_told_to_the_client() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut stage = Stage::set(Way::Nat, Shape::OneArm)?;
    for servers in &mut stage.servers {
        servers.dnsmasq.kill()?;
    }
    for family in Family::BOTH {
        let refused = clients::udp_refusal(stage.client(), stage.vip(family, DNS));
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{family:?}");
    }
    Ok(())
}

#[test]
fn a_vip_answers_pings() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let stage = Stage::set(Way::Nat, Shape::OneArm)?;
    for family in Family::BOTH {
        let vip = family.vip().to_string();
        for size in ["0", "56", "1400"] {
            let said = stage.client().run(
                Command::new("ping").args(["-c", "3", "-i", "0.2", "-W", "5", "-s", size, &vip]),
            )?;
            ensure!(said.contains("3 received"), "{said}");
        }
    }
    Ok(())
}
