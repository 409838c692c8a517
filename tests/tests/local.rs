//! `local` and `pass` with real sockets: a node as a CNI makes one, clients outside, pods behind a bridge; see
//! [`lb_tests::node`]. Strict reverse-path filtering, two uplinks, and what pods send out is masqueraded.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::{
    is_root,
    netns::{Netns, until},
    node::{CLIENTS, Node, PODS, PORT, Place, TARGET, VIPS},
};
use lb_userspace::attach::{Nft, TcChoice, replies};

const PATIENCE: Duration = Duration::from_secs(10);

/// Tests run with pod 1 on this node and nothing else known, by TCX and by `clsact`.
const HERE: [Option<Place>; 2] = [Some(Place::Here), None];

fn with_node(
    choice: TcChoice,
    pods: [Option<Place>; 2],
    test: impl FnOnce(&mut Node) -> Result<()>,
) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut node = Node::build(choice)?;
    node.serve(pods)?;
    test(&mut node)
}

fn vip(family: usize) -> SocketAddr {
    socket(VIPS[family][0], PORT)
}

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// Where a pod listens.
fn target(family: usize, pod: usize) -> SocketAddr {
    socket(PODS[family][pod], TARGET)
}

/// A TCP server in a pod: to a line with a number it answers the client's address, a line, and that many bytes; then it
/// reads as many and says `done`.
fn serve_tcp(node: &Node, family: usize, pod: usize) -> Result<()> {
    let listener = listen(node, family, pod)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(())
}

fn listen(node: &Node, family: usize, pod: usize) -> Result<TcpListener> {
    let address = target(family, pod);
    Ok(node.pods[pod].enter(|| TcpListener::bind(address))?)
}

fn connect(client: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let stream = client.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut asked = [0; 8];
    stream.read_exact(&mut asked)?;
    let length: usize = String::from_utf8_lossy(&asked).trim().parse()?;
    let client = stream.peer_addr()?;
    writeln!(stream, "{client}")?;
    stream.write_all(&pattern(length))?;
    let mut sent = vec![0; length];
    stream.read_exact(&mut sent)?;
    ensure!(sent == pattern(length), "came as it was sent");
    stream.write_all(b"done")?;
    Ok(())
}

/// Bytes that are not the same anywhere else.
fn pattern(length: usize) -> Vec<u8> {
    (0..=length as u32 / 4)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_be_bytes())
        .take(length)
        .collect()
}

/// Asks for `length` bytes; gives back whom the pod has seen.
fn download(stream: &mut TcpStream, length: usize) -> Result<SocketAddr> {
    write!(stream, "{length:<8}")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    let mut came = vec![0; length];
    stream.read_exact(&mut came)?;
    ensure!(came == pattern(length), "came as it was sent");
    Ok(String::from_utf8(line)?.trim().parse()?)
}

/// The same, and sends as many; gives back the own address, too.
fn exchange(client: &Netns, to: SocketAddr, length: usize) -> Result<(SocketAddr, SocketAddr)> {
    let mut stream = connect(client, to)?;
    let seen = download(&mut stream, length)?;
    stream.write_all(&pattern(length))?;
    let mut done = [0; 4];
    stream.read_exact(&mut done)?;
    ensure!(done == *b"done", "{done:?}");
    Ok((seen, stream.local_addr()?))
}

fn pod_udp(node: &Node, family: usize, pod: usize) -> Result<UdpSocket> {
    udp(&node.pods[pod], target(family, pod))
}

fn client_udp(node: &Node, family: usize, client: usize) -> Result<UdpSocket> {
    udp(&node.clients[client], socket(CLIENTS[family][client], 0))
}

fn udp(netns: &Netns, address: SocketAddr) -> Result<UdpSocket> {
    let socket = netns.enter(|| UdpSocket::bind(address))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// What came, and from where.
fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_535];
    let (length, from) = socket.recv_from(&mut buffer)?;
    buffer.truncate(length);
    Ok((buffer, from))
}

fn pods_see_clients(choice: TcChoice) -> Result<()> {
    with_node(choice, HERE, |node| {
        for (family, addresses) in CLIENTS.into_iter().enumerate() {
            serve_tcp(node, family, 0)?;
            let pod = pod_udp(node, family, 0)?;
            for (number, client) in node.clients.iter().enumerate() {
                let address: IpAddr = addresses[number].parse()?;
                let (seen, own) = exchange(client, vip(family), 100)?;
                assert_eq!((seen.ip(), seen.port()), (address, own.port()));

                let asking = client_udp(node, family, number)?;
                asking.send_to(b"hello", vip(family))?;
                let (came, seen) = receive(&pod)?;
                assert_eq!(came, b"hello");
                let port = asking.local_addr()?.port();
                assert_eq!(seen, SocketAddr::new(address, port));
                // Larger than any MTU here: in fragments.
                pod.send_to(&pattern(4000), seen)?;
                let (came, from) = receive(&asking)?;
                assert_eq!((came, from), (pattern(4000), vip(family)));
                asking.send_to(&pattern(4000), vip(family))?;
                assert_eq!(receive(&pod)?, (pattern(4000), seen));
            }
        }
        // The kernel tracks client and pod, knows nothing of the VIP, and translates nothing.
        let tracked = node.tracked()?;
        for (family, clients) in CLIENTS.into_iter().enumerate() {
            for client in clients {
                let ours: Vec<_> = tracked
                    .iter()
                    .filter(|line| line.contains(&format!("src={client} ")))
                    .collect();
                ensure!(!ours.is_empty(), "{tracked:#?}");
                for line in ours {
                    let pod = PODS[family][0];
                    ensure!(line.contains(&format!("src={client} dst={pod} ")), "{line}");
                    ensure!(line.contains(&format!("src={pod} dst={client} ")), "{line}");
                }
            }
        }
        Ok(())
    })
}

/// A10.1
#[test]
fn pods_see_their_clients_by_tcx() -> Result<()> {
    pods_see_clients(TcChoice::Best)
}

#[test]
fn pods_see_their_clients_by_clsact() -> Result<()> {
    pods_see_clients(TcChoice::Clsact)
}

#[test]
fn large_transfers_come_whole_in_large_segments() -> Result<()> {
    const LENGTH: usize = 9_000_000;
    with_node(TcChoice::Best, HERE, |node| {
        for family in 0..2 {
            serve_tcp(node, family, 0)?;
            let [_, before] = node.forwarded()?;
            download(&mut connect(&node.clients[0], vip(family))?, LENGTH)?;
            let [_, after] = node.forwarded()?;
            let packets = (after - before) as usize;
            // Not one packet a segment.
            ensure!(
                packets * 1448 * 2 < LENGTH,
                "{packets} packets: segmented before they leave"
            );
        }
        Ok(())
    })
}

/// Neither idle connections nor `conntrack -D` give a reply another source; without the chain they do.
#[test]
fn replies_of_forgotten_connections_keep_their_source() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        for family in 0..2 {
            let pod = pod_udp(node, family, 0)?;
            let asking = client_udp(node, family, 0)?;
            asking.send_to(b"hello", vip(family))?;
            let (_, seen) = receive(&pod)?;
            node.forget()?;
            pod.send_to(b"first", seen)?;
            assert_eq!(receive(&asking)?, (b"first".to_vec(), vip(family)));

            let listener = listen(node, family, 0)?;
            let mut stream = connect(&node.clients[0], vip(family))?;
            let (mut accepted, _) = listener.accept()?;
            node.forget()?;
            accepted.write_all(b"first")?;
            let mut came = [0; 5];
            stream.read_exact(&mut came)?;
            assert_eq!(came, *b"first");
        }
        // What it is like without.
        ensure!(
            node.netns.enter(|| replies::remove(&mut Nft::default()))?,
            "the table was there"
        );
        let pod = pod_udp(node, 0, 0)?;
        let asking = client_udp(node, 0, 0)?;
        asking.send_to(b"hello", vip(0))?;
        let (_, seen) = receive(&pod)?;
        node.forget()?;
        pod.send_to(b"first", seen)?;
        let (_, from) = receive(&asking)?;
        assert_eq!(from.ip(), "198.51.100.1".parse::<IpAddr>()?, "the node's");
        ensure!(
            !node.netns.enter(|| replies::remove(&mut Nft::default()))?,
            "no table is left"
        );
        Ok(())
    })
}

#[test]
fn one_socket_speaks_to_two_frontends_of_one_pod() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        for (family, vips) in VIPS.into_iter().enumerate() {
            let pod = pod_udp(node, family, 0)?;
            let asking = client_udp(node, family, 0)?;
            let mut seen = Vec::new();
            for vip in vips {
                asking.send_to(vip.as_bytes(), socket(vip, PORT))?;
                let (came, from) = receive(&pod)?;
                assert_eq!(came, vip.as_bytes());
                seen.push(from);
            }
            assert_eq!(seen[0].ip(), seen[1].ip());
            assert_ne!(seen[0].port(), seen[1].port());
            for (vip, seen) in vips.into_iter().zip(seen) {
                pod.send_to(vip.as_bytes(), seen)?;
                let (came, from) = receive(&asking)?;
                assert_eq!((came, from), (vip.as_bytes().to_vec(), socket(vip, PORT)));
            }
        }
        Ok(())
    })
}

#[test]
fn a_pods_refusal_reaches_the_client() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        for family in 0..2 {
            // Nobody listens there.
            let asking = client_udp(node, family, 0)?;
            asking.connect(vip(family))?;
            asking.send(b"hello")?;
            let refused = asking.recv(&mut [0; 9]).err().map(|error| error.kind());
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
            let to = vip(family);
            let refused = node.clients[0].enter(|| TcpStream::connect_timeout(&to, PATIENCE));
            let refused = refused.err().map(|error| error.kind());
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "RST");
        }
        Ok(())
    })
}

/// The way to the pods takes less than the client sends: it is told from the VIP's address, and heeds that.
#[test]
fn a_client_learns_of_a_smaller_mtu_behind_us() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        node.netns.ip(["link set cni0 mtu 1400"])?;
        for (family, [vip, _]) in VIPS.into_iter().enumerate() {
            serve_tcp(node, family, 0)?;
            exchange(&node.clients[0], socket(vip, PORT), 300_000)?;
            let mut ip = Command::new("ip");
            let shown = node.clients[0].run(ip.args(["route", "get", vip]))?;
            ensure!(shown.contains("mtu 1400"), "{shown}");
        }
        Ok(())
    })
}

/// What began at one goes on there, whatever is chosen later.
#[test]
fn connections_stay_where_they_began() -> Result<()> {
    const ELSEWHERE: [Option<Place>; 2] = [None, Some(Place::Elsewhere)];
    with_node(TcChoice::Best, HERE, |node| {
        let mut listeners = Vec::new();
        for family in 0..2 {
            listeners.push([listen(node, family, 0)?, listen(node, family, 1)?]);
        }
        let mut open = Vec::new();
        for (at, pods) in [(0, HERE), (1, ELSEWHERE), (0, HERE)] {
            node.serve(pods)?;
            let [before, _] = node.forwarded()?;
            for (family, listeners) in listeners.iter().enumerate() {
                let stream = connect(&node.clients[0], vip(family))?;
                let (accepted, _) = listeners[at].accept()?;
                accepted.set_read_timeout(Some(PATIENCE))?;
                open.push((stream, accepted));
            }
            let [after, _] = node.forwarded()?;
            assert_eq!(after > before, at == 0, "by us or past us");
            for (stream, accepted) in &mut open {
                let mut came = [0; 4];
                stream.write_all(b"ping")?;
                accepted.read_exact(&mut came)?;
                assert_eq!(came, *b"ping");
                accepted.write_all(b"pong")?;
                stream.read_exact(&mut came)?;
                assert_eq!(came, *b"pong");
            }
        }
        Ok(())
    })
}

#[test]
fn after_detach_the_other_serves_and_nothing_of_ours_is_left() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        for family in 0..2 {
            serve_tcp(node, family, 0)?;
            serve_tcp(node, family, 1)?;
            exchange(&node.clients[0], vip(family), 1000)?;
        }
        node.detach()?;
        for family in 0..2 {
            until(Duration::from_secs(1), || {
                exchange(&node.clients[0], vip(family), 1000)
            })?;
        }
        let tables = node
            .netns
            .run(Command::new("nft").args(["list", "tables"]))?;
        ensure!(!tables.contains("millrace"), "{tables}");
        let shown = node.netns.run(Command::new("bpftool").arg("net"))?;
        ensure!(
            !shown.contains("eth0") && !shown.contains("eth1"),
            "{shown}"
        );
        ensure!(!node.pins.exists(), "pins");
        Ok(())
    })
}

#[test]
fn bypass_hands_new_connections_over_and_takes_the_chain_away() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        for family in 0..2 {
            serve_tcp(node, family, 1)?;
        }
        node.netns.run(node.millrace()?.args(["bypass", "on"]))?;
        for family in 0..2 {
            exchange(&node.clients[0], vip(family), 1000)?;
        }
        assert_eq!(node.forwarded()?, [0; 2]);
        ensure!(
            !node.netns.enter(|| replies::remove(&mut Nft::default()))?,
            "the chain is gone"
        );
        Ok(())
    })
}

/// The chain as people see it: `nft` understands what was written without it.
#[test]
fn the_chain_is_what_it_is_said_to_be() -> Result<()> {
    with_node(TcChoice::Best, HERE, |node| {
        let listed = || {
            node.netns
                .run(Command::new("nft").args(["-y", "list", "table", "inet", "millrace"]))
        };
        let shown = listed()?;
        for line in [
            "type nat hook postrouting priority 99",
            "10.244.1.11 . tcp . 8080",
            "10.244.1.11 . udp . 8080",
            "fd00:244::11 . tcp . 8080",
            "@backends4 snat ip to ip saddr",
            "@backends6 snat ip6 to ip6 saddr",
        ] {
            ensure!(shown.contains(line), "no `{line}` in\n{shown}");
        }
        let added = BTreeSet::from([(socket("10.244.1.99", 53), 17)]);
        let removed = BTreeSet::from([(target(0, 0), 6)]);
        node.netns
            .enter(|| replies::change(&mut Nft::default(), &added, &removed))?;
        let shown = listed()?;
        ensure!(shown.contains("10.244.1.99 . udp . 53"), "{shown}");
        ensure!(!shown.contains("10.244.1.11 . tcp"), "{shown}");
        Ok(())
    })
}
