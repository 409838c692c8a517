//! What the checks look at, read from this host at once. Nothing is changed; a question that the kernel refuses to answer
//! is a fact, too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::abi::setting_flag;

use super::{
    proxies::{BPF_FILESYSTEM, Proxy},
    tunnels::Tunnels,
};
use crate::{
    attach::{self, AttachError, Clock, Inspected, Mode},
    config::Config,
    dataplane,
    lease::Lease,
    net::{self, Facts as Network, Masquerade},
    state::Bypass,
};

/// This host, as far as it matters.
#[derive(Clone, Debug)]
pub struct Facts {
    /// As `uname -r` says.
    pub kernel: String,
    /// `none`, `integrity` or `confidentiality`; absent where the kernel has no such thing.
    pub lockdown: Option<String>,
    /// The kernel's own types, for tools.
    pub type_information: bool,
    /// Absent where it cannot be read: kernels that always compile.
    pub jit: Option<bool>,
    pub bpf_filesystem: bool,
    pub missing_capabilities: Vec<&'static str>,
    /// Absent without `--config`; what is wrong with it, if it is.
    pub config: Option<Result<Config, String>>,
    pub mode: Mode,
    /// By name; absent where there is no such interface.
    pub interfaces: BTreeMap<String, Option<Found>>,
    pub network: Network,
    /// What is wrong with the rules that were asked for, if they cannot be read.
    pub masquerades: Result<Vec<Masquerade>, String>,
    /// Others that serve Services by BPF.
    pub proxies: Vec<Proxy>,
    /// Absent where this node has none.
    pub tunnels: Option<Tunnels>,
    pub agent: Option<Agent>,
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub inspected: Inspected,
    pub sysctls: Sysctls,
}

/// Settings of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sysctls {
    /// `net.ipv4.conf.*.rp_filter`, the stricter of the interface's and that of all.
    pub rp_filter: Option<u8>,
    pub forwarding4: bool,
    pub forwarding6: bool,
}

/// What the maps tell of the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agent {
    /// Since its last sign of life; none if there never was one.
    pub silence: Option<Duration>,
    pub bypass: Option<Bypass>,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Question {
    pub config: Option<PathBuf>,
    pub interfaces: Vec<String>,
    pub pin_root: PathBuf,
}

impl Facts {
    /// Reads everything. Interfaces are those of the calling thread's network namespace: those asked for, else those of
    /// the configuration, else those of the default routes. `network` is what [`net::snapshot`] gave, `tunnels`
    /// what [`Tunnels::probe`] has.
    ///
    /// # Errors
    /// The kernel does not tell of an interface.
    pub fn gather(
        question: &Question,
        mut network: Network,
        tunnels: Option<Tunnels>,
    ) -> Result<Self, AttachError> {
        let config = question.config.as_ref().map(|file| {
            let name = file.display().to_string();
            let text = fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
            Config::parse(&text, &name).map_err(|errors| errors.to_string())
        });
        let read = config.as_ref().and_then(|config| config.as_ref().ok());
        let mode = read.map_or(Mode::Native, crate::reconcile::mode);
        let names = if question.interfaces.is_empty() {
            let patterns = read.map_or(&[][..], |config| &config.interfaces);
            net::interfaces(&network, patterns)
        } else {
            question.interfaces.iter().cloned().collect()
        };
        let mut interfaces = BTreeMap::new();
        for name in names {
            let inspected = attach::inspect(&question.pin_root, &name)?;
            let found = inspected.map(|inspected| Found {
                inspected,
                sysctls: Sysctls::read(&name),
            });
            interfaces.insert(name, found);
        }
        let masquerades = net::masquerades().map_err(|error| error.to_string());
        network.masquerades = masquerades.clone().unwrap_or_default();
        Ok(Self {
            kernel: word("/proc/sys/kernel/osrelease").unwrap_or_default(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
                .ok()
                .as_deref()
                .and_then(chosen),
            type_information: Path::new("/sys/kernel/btf/vmlinux").exists(),
            jit: word("/proc/sys/net/core/bpf_jit_enable").map(|word| word != "0"),
            bpf_filesystem: attach::is_bpf_filesystem(&question.pin_root),
            missing_capabilities: attach::missing_capabilities(),
            config,
            mode,
            interfaces,
            network,
            masquerades,
            proxies: Proxy::find(Path::new(BPF_FILESYSTEM)),
            tunnels,
            agent: Agent::read(&question.pin_root),
        })
    }
}

impl Sysctls {
    fn read(interface: &str) -> Self {
        let number = |key: &str| -> Option<u8> {
            let path = format!("/proc/sys/net/{key}");
            word(&path)?.parse().ok()
        };
        let filter = |of: &str| number(&format!("ipv4/conf/{of}/rp_filter"));
        let on = |key: String| number(&key).is_some_and(|value| value != 0);
        Self {
            // The kernel takes the larger of both (ip-sysctl.rst).
            rp_filter: filter("all").max(filter(interface)),
            forwarding4: on(format!("ipv4/conf/{interface}/forwarding")),
            forwarding6: on(format!("ipv6/conf/{interface}/forwarding")),
        }
    }
}

impl Agent {
    /// None without pins, or without the right to read them or to tell the time.
    fn read(pin_root: &Path) -> Option<Self> {
        let seen = attach::look(pin_root).ok()??;
        let settings = dataplane::settings(&seen.maps).ok()?;
        let now = Clock::load().and_then(|clock| clock.now()).ok()?;
        let lease = Lease::adopt(&settings, settings.hz);
        let command = settings.flags & setting_flag::BYPASS != 0;
        Some(Self {
            silence: lease.silence(now),
            bypass: if command {
                Some(Bypass::Command)
            } else {
                lease.passes(now)
            },
        })
    }
}

/// A file of one line.
fn word(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// The word in brackets of `none [integrity] confidentiality`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        assert_eq!(
            chosen("none [integrity] confidentiality\n").as_deref(),
            Some("integrity")
        );
        assert_eq!(
            chosen("[none] integrity confidentiality\n").as_deref(),
            Some("none")
        );
        assert_eq!(chosen(""), None);
    }
}
