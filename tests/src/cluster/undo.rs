//! What a test changes of the network around the pods, and what puts it back.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Cluster;
use crate::netns::Netns;

/// Of each `eth0`, in bytes.
const MTU: u16 = 1500;

/// Undoes a change on drop, whatever became of the test.
#[must_use = "undone at once"]
pub struct Undo<'a>(Box<dyn Fn() -> Result<()> + 'a>);

impl<'a> Undo<'a> {
    pub(super) fn by(undo: impl Fn() -> Result<()> + 'a) -> Self {
        Self(Box::new(undo))
    }
}

impl fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undo").finish_non_exhaustive()
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0() {
            eprintln!("{error:#}");
        }
    }
}

impl Cluster {
    /// Another address of the client's, in the same subnet.
    pub fn second_address(&self, v6: bool) -> Result<(IpAddr, Undo<'_>)> {
        const HOST: u8 = 77;
        let (second, bits) = match self.address("client", v6)? {
            IpAddr::V4(own) => {
                let [a, b, c, _] = own.octets();
                (Ipv4Addr::from([a, b, c, HOST]).into(), 24)
            }
            IpAddr::V6(own) => {
                let network = own.to_bits() & !u128::from(u64::MAX);
                let second = Ipv6Addr::from_bits(network | u128::from(HOST));
                (second.into(), 64)
            }
        };
        let command = move |verb: &str| format!("address {verb} {second}/{bits} dev eth0");
        self.client.ip([command("replace").as_str()])?;
        let undo = Undo::by(move || self.client.ip([command("delete").as_str()]));
        Ok((second, undo))
    }

    /// The router's way to the client takes no packets above `mtu` bytes. What it says to who sends them is not obeyed here.
    pub fn narrow(&self, v6: bool, mtu: u16) -> Result<Undo<'_>> {
        let client = self.address("client", v6)?;
        let route = format!("route replace {client} dev client mtu {mtu}");
        self.router.ip([route.as_str()])?;
        let delete = format!("route delete {client} dev client");
        Ok(Undo::by(move || self.router.ip([delete.as_str()])))
    }

    /// The wires of these places carry so much: both ends of each.
    pub fn carry(&self, places: &[String], mtu: u16) -> Result<Undo<'_>> {
        let set = {
            let places = places.to_vec();
            move |mtu: u16| {
                for name in &places {
                    let router = format!("link set dev {name} mtu {mtu}");
                    self.router.ip([router.as_str()])?;
                    let place = format!("link set dev eth0 mtu {mtu}");
                    self.place(name)?.ip([place.as_str()])?;
                }
                Ok(())
            }
        };
        set(mtu)?;
        Ok(Undo::by(move || set(MTU)))
    }

    /// A table of nftables' family `inet` at a place. `rules` are objects and chains as `nft` reads them.
    pub fn filter(&self, place: &str, table: &'static str, rules: &str) -> Result<Filter<'_>> {
        let netns = self.place(place)?;
        // An earlier run may have been killed before it could delete it.
        let text = format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{rules}\n}}"
        );
        netns.run(Command::new("nft").arg(text))?;
        let own = netns.clone();
        let undo = Undo::by(move || {
            let delete = ["delete", "table", "inet", table];
            own.run(Command::new("nft").args(delete)).map(drop)
        });
        Ok(Filter { netns, table, undo })
    }

    /// A node takes IPv4 packets by no other interface than the one that leads back to their sender.
    pub fn strict_paths(&self, node: &str) -> Result<Undo<'_>> {
        let netns = self.place(node)?;
        let settings = netns.enter(|| -> io::Result<_> {
            let interfaces = fs::read_dir("/proc/sys/net/ipv4/conf")?;
            let setting = |interface: io::Result<fs::DirEntry>| {
                let path = interface?.path().join("rp_filter");
                Ok((fs::read_to_string(&path)?, path))
            };
            interfaces.map(setting).collect::<io::Result<Vec<_>>>()
        })?;
        let write = move |strict: bool| {
            netns.enter(|| {
                settings.iter().try_for_each(|(before, path)| {
                    let value = if strict { "1" } else { before };
                    match fs::write(path, value) {
                        // Of a pod that has gone.
                        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                        done => done.with_context(|| path.display().to_string()),
                    }
                })
            })
        };
        write(true)?;
        Ok(Undo::by(move || write(false)))
    }
}

/// A table of nftables that is deleted on drop.
#[derive(Debug)]
pub struct Filter<'a> {
    netns: Netns,
    table: &'static str,
    #[expect(dead_code, reason = "deletes the table")]
    undo: Undo<'a>,
}

impl Filter<'_> {
    /// Packets that one of its counters has counted.
    pub fn counted(&self, counter: &str) -> Result<u64> {
        let list = ["--json", "list", "counter", "inet", self.table, counter];
        let listed = self.netns.run(Command::new("nft").args(list))?;
        let whole: Value = serde_json::from_str(&listed)?;
        let objects = whole["nftables"].as_array().context("nftables")?;
        let mut counted = objects.iter().map(|object| &object["counter"]["packets"]);
        counted.find_map(Value::as_u64).context(listed)
    }
}
