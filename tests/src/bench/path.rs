//! `bench path`: packets per second and new flows per second through the same interfaces, for us and for an nftables map
//! in the shape that kube-proxy writes, in one run.
//!
//! generator → veth → balancer → veth → sink, all on one core. Frames are injected as XDP live frames, so they arrive as
//! a NIC's driver would deliver them, and are counted and dropped by a program on the last interface. Seconds are those of
//! the processor, so that others on the same machine change little.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{NextHop, Segment};
use lb_userspace::attach::Clock;
use serde_json::json;

use super::{
    contents::{self, Kind as Service},
    established,
    frames::{self, Kind},
    kernel::{self, Cell},
    machine,
};
use crate::{kernel::Kernel, netns::Netns};

/// Rounds of each case, taken in turns; the fastest counts.
const ROUNDS: u32 = 15;
/// Packets in a round of established flows.
const PACKETS: u32 = 200_000;
/// New flows in a round: as many as fit the kernel's connection tracking without it being full.
const NEW_FLOWS: u32 = 100_000;
/// Established flows.
const FLOWS: u32 = 8192;
/// More flows than are ever sent.
const ENDLESS: u64 = 1 << 31;

/// The processor that everything runs on.
const CPU: usize = 0;
/// Time between two looks at the sink's counter, and time without a packet after which none is on its way.
const WATCH: Duration = Duration::from_millis(1);
const QUIET: Duration = Duration::from_millis(5);

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const GENERATOR: [u8; 6] = [2, 0, 0, 0, 1, 1];
const UPLINK: [u8; 6] = [2, 0, 0, 0, 1, 2];
const DOWNLINK: [u8; 6] = [2, 0, 0, 0, 1, 3];
const SINK: [u8; 6] = [2, 0, 0, 0, 1, 4];

/// Who balances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Millrace(Service),
    Nftables,
}

struct Case {
    name: &'static str,
    way: Way,
    new: bool,
    /// Times what nftables does.
    target: Option<f64>,
}

const fn case(name: &'static str, way: Way, new: bool, target: f64) -> Case {
    Case {
        name,
        way,
        new,
        target: if target > 0.0 { Some(target) } else { None },
    }
}

const CASES: [Case; 7] = [
    case("nftables established", Way::Nftables, false, 0.0),
    case(
        "ipip established",
        Way::Millrace(Service::Ipip4),
        false,
        5.0,
    ),
    case("l2 established", Way::Millrace(Service::L2), false, 5.0),
    case("nat established", Way::Millrace(Service::Nat), false, 3.5),
    case("nftables new flows", Way::Nftables, true, 0.0),
    case("ipip new flows", Way::Millrace(Service::Ipip4), true, 8.0),
    case("nat new flows", Way::Millrace(Service::Nat), true, 2.0),
];

pub(super) fn run(json: bool) -> Result<()> {
    let machine = machine::describe()?;
    let rates = Stage::set()?.measure()?;
    let base = |new| if new { rates[4] } else { rates[0] };
    let rows = CASES.iter().zip(rates);
    if json {
        let rows: Vec<_> = rows
            .map(|(case, rate)| {
                let ratio = (rate / base(case.new) * 100.0).round() / 100.0;
                json!({ "case": case.name, "per_second": rate.round(), "ratio": ratio })
            })
            .collect();
        let whole = json!({ "machine": machine, "rows": rows });
        return machine::print(&format!("{whole:#}"));
    }
    let mut table = format!(
        "{machine}\n\n{:24} {:>12} {:>12} {:>8}\n",
        "case", "per second", "× nftables", "target"
    );
    for (case, rate) in rows {
        let target = case
            .target
            .map_or(String::new(), |times| format!("≥ {times}"));
        let ratio = rate / base(case.new);
        writeln!(
            table,
            "{:24} {rate:>12.0} {ratio:>12.1} {target:>8}",
            case.name
        )?;
    }
    machine::print(&table)
}

/// Three hosts in a row, and what runs on them.
struct Stage {
    generator: Netns,
    balancer: Netns,
    /// Interface of the generator, and of the balancer towards it.
    out: u32,
    uplink: u32,
    _kernel: Kernel,
    program: OwnedFd,
    count: Cell,
    _sink: OwnedFd,
    _last: Netns,
}

impl Stage {
    fn set() -> Result<Self> {
        let generator = Netns::create("generator")?;
        let balancer = Netns::create("balancer")?;
        let last = Netns::create("sink")?;
        for netns in [&generator, &balancer, &last] {
            // Nothing but our frames on the wires.
            netns.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        let far = [balancer.name(), last.name()];
        generator.ip([&*cable("g0", GENERATOR, "l0", UPLINK, far[0])])?;
        balancer.ip([&*cable("l1", DOWNLINK, "s0", SINK, far[1])])?;
        generator.ip(["link set g0 up"])?;
        balancer.ip([
            "link set l0 up",
            "link set l1 up",
            &format!("address add {}/24 dev l1", contents::OWN),
            "neighbour add 10.200.255.2 lladdr 02:00:00:00:01:04 dev l1",
            "route add 10.200.0.0/16 via 10.200.255.2 dev l1",
        ])?;
        last.ip(["link set s0 up"])?;
        balancer.sysctl("net.ipv4.ip_forward", "1")?;
        // A NIC would have verified the TCP checksums.
        balancer.sysctl("net.netfilter.nf_conntrack_checksum", "0")?;
        for device in ["l0", "l1"] {
            balancer.like_a_wire(device)?;
        }
        let count = Cell::create(8)?;
        let sink = frames::sink(&count)?;
        let device = index(&last, "s0")?;
        let sink = last.enter(|| kernel::attach(sink.as_fd(), device))?;
        let mut kernel = Kernel::load("bench-path", contents::SIZES)?;
        let clock = Clock::load()?;
        let downlink = index(&balancer, "l1")?;
        let next_hop = NextHop {
            destination: NextHop::destination_word(SINK, NextHop::RESOLVED | NextHop::XDP_SEND),
            source: NextHop::source_word(DOWNLINK, 1500),
            segment: Segment {
                ifindex: downlink,
                tags: 0,
            },
            ..NextHop::default()
        };
        contents::fill(&mut kernel, &next_hop, clock.rate()?)?;
        established::enter(
            &kernel,
            Service::Nat,
            CLIENT.into(),
            FLOWS,
            clock.now()? as u32,
        )?;
        // Devices are looked up in the namespace of whoever enters them.
        let folder = kernel.folder.clone();
        balancer.enter(|| contents::allow(&folder, downlink))?;
        let program = kernel.xdp()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self {
            out: index(&generator, "g0")?,
            uplink: index(&balancer, "l0")?,
            generator,
            balancer,
            _kernel: kernel,
            program,
            count,
            _sink: sink,
            _last: last,
        })
    }

    /// Per second, by case.
    fn measure(&self) -> Result<[f64; CASES.len()]> {
        let generators = CASES
            .iter()
            .map(|case| self.generator_of(case))
            .collect::<Result<Vec<_>>>()?;
        let mut best = [0.0_f64; CASES.len()];
        for _ in 0..ROUNDS {
            for (at, (case, (program, frame))) in CASES.iter().zip(&generators).enumerate() {
                let rate = match case.way {
                    Way::Millrace(_) => self.with_millrace(case, program.as_fd(), frame),
                    Way::Nftables => self.with_nftables(case, program.as_fd(), frame),
                };
                best[at] = best[at].max(rate.context(case.name)?);
            }
        }
        Ok(best)
    }

    fn generator_of(&self, case: &Case) -> Result<(OwnedFd, Vec<u8>)> {
        let service = match case.way {
            Way::Millrace(service) => service,
            Way::Nftables => Service::Nat,
        };
        let (kind, flows) = if case.new {
            (Kind::Syn, ENDLESS)
        } else {
            (Kind::Ack, u64::from(FLOWS))
        };
        let frame = frames::frame([GENERATOR, UPLINK], IpAddr::V4(CLIENT), service.vip(), kind)?;
        Ok((frames::generator(&frame, flows, self.out)?, frame))
    }

    fn with_millrace(&self, case: &Case, program: BorrowedFd<'_>, frame: &[u8]) -> Result<f64> {
        let (ours, uplink) = (self.program.as_fd(), self.uplink);
        let link = self.balancer.enter(|| kernel::attach(ours, uplink))?;
        let rate = self.round(case, program, frame);
        drop(link);
        rate
    }

    fn with_nftables(&self, case: &Case, program: BorrowedFd<'_>, frame: &[u8]) -> Result<f64> {
        self.nft(&rules())?;
        if !case.new {
            // Connection tracking takes an established flow up at its first packet.
            self.send(program, frame, FLOWS)?;
        }
        let rate = self.round(case, program, frame);
        self.nft("flush ruleset")?;
        self.balancer.run(Command::new("conntrack").args(["-F"]))?;
        rate
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]).stdin(Stdio::piped());
        let mut nft = self.balancer.enter(|| nft.spawn()).context("nft")?;
        std::io::Write::write_all(
            &mut nft.stdin.take().context("stdin of nft")?,
            rules.as_bytes(),
        )?;
        ensure!(nft.wait()?.success(), "nft refused:\n{rules}");
        Ok(())
    }

    /// Frames that the sink counted, per second of the processor.
    fn round(&self, case: &Case, program: BorrowedFd<'_>, frame: &[u8]) -> Result<f64> {
        let packets = if case.new { NEW_FLOWS } else { PACKETS };
        let (counted, time) = self.send(program, frame, packets)?;
        ensure!(
            counted * 100 >= u64::from(packets) * 95,
            "of {packets} packets {counted} came through"
        );
        Ok(counted as f64 / time.as_secs_f64())
    }

    /// Sends on one processor, and waits for the last to arrive: how many did, and the processor's time for all of it,
    /// from the generator to the sink. Where the kernel keeps softirqs out of a thread's time
    /// (`CONFIG_IRQ_TIME_ACCOUNTING`) it is too short, for all cases alike.
    fn send(&self, program: BorrowedFd<'_>, frame: &[u8], packets: u32) -> Result<(u64, Duration)> {
        let before = self.counted()?;
        let softirqs = machine::softirq_time(CPU)?;
        let own = self.generator.enter(|| -> Result<Duration> {
            machine::pin(CPU)?;
            let start = machine::processor_time();
            kernel::inject(program, frame, packets).context("live frames (Linux 5.18)")?;
            Ok(machine::processor_time().saturating_sub(start))
        })?;
        let (mut counted, mut since) = (self.counted()?, Instant::now());
        while since.elapsed() < QUIET {
            thread::sleep(WATCH);
            let now = self.counted()?;
            if now != counted {
                (counted, since) = (now, Instant::now());
            }
        }
        let softirqs = machine::softirq_time(CPU)?.saturating_sub(softirqs);
        Ok((counted - before, own + softirqs))
    }

    fn counted(&self) -> Result<u64> {
        let bytes = self.count.read()?;
        Ok(u64::from_ne_bytes(bytes[..8].try_into()?))
    }
}

/// A veth pair with known addresses, the other end in another namespace.
fn cable(one: &str, mac: [u8; 6], other: &str, other_mac: [u8; 6], netns: &str) -> String {
    let (mac, other_mac) = (text(mac), text(other_mac));
    format!(
        "link add {one} address {mac} type veth peer name {other} address {other_mac} netns {netns}"
    )
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn index(netns: &Netns, device: &str) -> Result<u32> {
    let shown = netns.run(Command::new("ip").args(["-o", "link", "show", "dev", device]))?;
    let number = shown.split(':').next().context("ip link")?;
    Ok(number.trim().parse()?)
}

/// As kube-proxy's nftables mode writes a service: a map from address, protocol and port to the service's chain, a random
/// backend of it, and masquerading of what was marked.
fn rules() -> String {
    let vip = Service::Nat.vip();
    let (address, port) = (vip.ip(), vip.port());
    let backends = || (0..contents::BACKENDS).map(|at| (at, Service::Nat.backend(at)));
    let chains: Vec<String> = backends()
        .map(|(at, ip)| format!("chain endpoint-{at} {{ meta l4proto tcp dnat to {ip}:{port}; }}"))
        .collect();
    let choice: Vec<String> = backends()
        .map(|(at, _)| format!("{at} : goto endpoint-{at}"))
        .collect();
    let chains = chains.join("\n");
    let (count, choice) = (choice.len(), choice.join(", "));
    format!(
        "table ip kube-proxy {{
            map service-ips {{
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = {{ {address} . tcp . {port} : goto service-web }}
            }}
            chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
            {chains}
            chain service-web {{
                ip daddr {address} tcp dport {port} jump mark-for-masquerade
                numgen random mod {count} vmap {{ {choice} }}
            }}
            chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
            chain nat-prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                jump services
            }}
            chain masquerading {{
                meta mark & 0x4000 == 0 return
                meta mark set meta mark ^ 0x4000
                masquerade fully-random
            }}
            chain nat-postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                jump masquerading
            }}
        }}"
    )
}
