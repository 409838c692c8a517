//! Each check by facts that are made up: good, doubtful, bad.

use std::time::Duration;

use super::{proxies::Kind, *};
use crate::{
    attach::{Inspected, Mode, Nic, Program},
    config::Config,
    net::{Facts as Network, Masquerade, ethtool::Switch, sample},
    state::Bypass,
};

const ON: Switch = Switch {
    on: true,
    free: true,
};

fn nic() -> Nic {
    Nic {
        driver: "virtio_net".into(),
        mtu: 1500,
        ..Nic::default()
    }
}

fn found(nic: Nic) -> Found {
    Found {
        inspected: Inspected {
            nic,
            xdp: None,
            ours: false,
            tc: Vec::new(),
        },
        sysctls: Sysctls {
            rp_filter: Some(0),
            forwarding4: true,
            forwarding6: true,
        },
    }
}

/// `eth0` with 192.0.2.1/24 and the default route.
fn network() -> Network {
    sample::host(&[("192.0.2.1/24", true)])
}

/// A machine that is fit in every way.
fn fit() -> Facts {
    Facts {
        kernel: "6.12.9-amd64".into(),
        lockdown: Some("none".into()),
        type_information: true,
        jit: Some(true),
        bpf_filesystem: true,
        missing_capabilities: Vec::new(),
        config: None,
        mode: Mode::Native,
        interfaces: [("eth0".to_owned(), Some(found(nic())))].into(),
        network: network(),
        masquerades: Ok(Vec::new()),
        proxies: Vec::new(),
        tunnels: None,
        agent: Some(Agent {
            silence: Some(Duration::from_secs(1)),
            bypass: None,
        }),
    }
}

fn with_nic(change: impl FnOnce(&mut Found)) -> Facts {
    let mut facts = fit();
    let mut found = found(nic());
    change(&mut found);
    facts.interfaces.insert("eth0".into(), Some(found));
    facts
}

fn with_config(rest: &str) -> Facts {
    let head = "apiVersion: config.millrace.io/v1alpha1\nkind: MillraceConfiguration\n";
    Facts {
        config: Some(Config::parse(&format!("{head}{rest}"), "lb.yaml").map_err(|e| e.to_string())),
        ..fit()
    }
}

/// The line of a check: its state, what was found, the fix.
fn line(facts: &Facts, name: &str) -> (State, String, Option<String>) {
    let line = check(facts).into_iter().find(|line| line.check == name);
    let Line {
        state, found, fix, ..
    } = line.unwrap_or_else(|| panic!("no check {name}"));
    (state, found, fix)
}

fn state(facts: &Facts, check: &str) -> State {
    let (state, found, fix) = line(facts, check);
    // Whoever is told of trouble is told what to do.
    assert_eq!(state == State::Ok, fix.is_none(), "{check}: {found}");
    assert!(!found.is_empty() && fix != Some(String::new()), "{check}");
    state
}

#[test]
fn a_fit_machine_is_fit_in_every_line() {
    let lines = check(&fit());
    let bad: Vec<_> = lines
        .iter()
        .filter(|line| line.state != State::Ok)
        .collect();
    assert_eq!(bad, Vec::<&Line>::new());
    assert_eq!(verdict(&lines), State::Ok);
}

#[test]
fn kernels_are_judged_by_what_they_lack() {
    for (kernel, state) in [
        ("5.4.0-42-generic", State::Unfit),
        ("5.9.16", State::Unfit),
        ("5.10.0-28-amd64", State::Limit),
        ("6.1.0-28-amd64", State::Limit),
        ("6.6.0", State::Ok),
        ("unknown", State::Limit),
    ] {
        let facts = Facts {
            kernel: kernel.into(),
            ..fit()
        };
        assert_eq!(self::state(&facts, "kernel"), state, "{kernel}");
    }
    let facts = Facts {
        kernel: "5.8.0".into(),
        ..fit()
    };
    let (_, found, _) = line(&facts, "kernel");
    assert!(found.contains("links for XDP") && !found.contains("mapped into memory"));
}

#[test]
fn missing_privileges_are_named() {
    let facts = Facts {
        missing_capabilities: vec!["CAP_BPF"],
        ..fit()
    };
    assert_eq!(state(&facts, "privileges"), State::Unfit);
    assert!(line(&facts, "privileges").1.contains("CAP_BPF"));
}

#[test]
fn lockdown_jit_types_and_bpffs_limit_at_most() {
    for (lockdown, expected) in [
        (None, State::Ok),
        (Some("integrity"), State::Ok),
        (Some("confidentiality"), State::Limit),
    ] {
        let facts = Facts {
            lockdown: lockdown.map(Into::into),
            ..fit()
        };
        assert_eq!(state(&facts, "lockdown"), expected);
    }
    let facts = Facts {
        jit: Some(false),
        type_information: false,
        bpf_filesystem: false,
        ..fit()
    };
    for check in ["jit", "btf", "bpffs"] {
        assert_eq!(state(&facts, check), State::Limit);
    }
    assert_eq!(state(&Facts { jit: None, ..fit() }, "jit"), State::Ok);
}

#[test]
fn an_interface_must_be_there() {
    let mut facts = fit();
    facts.interfaces = [("eth7".to_owned(), None)].into();
    assert_eq!(state(&facts, "interface"), State::Unfit);
    facts.interfaces.clear();
    assert_eq!(state(&facts, "interfaces"), State::Unfit);
}

#[test]
fn drivers_are_judged_by_kernel_and_mode() {
    let driver = |driver: &str| with_nic(|found| found.inspected.nic.driver = driver.into());
    assert_eq!(state(&driver("ice"), "driver"), State::Ok);
    assert_eq!(state(&driver("e1000"), "driver"), State::Limit);
    assert_eq!(state(&driver("ionic"), "driver"), State::Ok);
    let old = Facts {
        kernel: "6.1.0".into(),
        ..driver("ionic")
    };
    assert_eq!(state(&old, "driver"), State::Unfit);
    let generic = Facts {
        mode: Mode::Generic,
        ..driver("e1000")
    };
    assert_eq!(state(&generic, "driver"), State::Limit);
    let old = Facts {
        kernel: "5.10.0-32-cloud-amd64".into(),
        ..generic
    };
    assert_eq!(state(&old, "driver"), State::Unfit);
}

#[test]
fn an_mtu_above_the_drivers_limit_is_named_with_the_limit() {
    let mtu = |driver: &str, mtu: u32| {
        with_nic(|found| {
            found.inspected.nic.driver = driver.into();
            found.inspected.nic.mtu = mtu;
        })
    };
    assert_eq!(state(&mtu("virtio_net", 3506), "mtu"), State::Ok);
    let (state_, _, fix) = line(&mtu("virtio_net", 9000), "mtu");
    assert_eq!(
        (state_, fix.as_deref()),
        (State::Unfit, Some("ip link set dev eth0 mtu 3506"))
    );
    assert_eq!(state(&mtu("e1000", 9000), "mtu"), State::Limit);
    assert_eq!(state(&mtu("e1000", 1500), "mtu"), State::Ok);
    let generic = Facts {
        mode: Mode::Generic,
        ..mtu("e1000", 9000)
    };
    assert_eq!(state(&generic, "mtu"), State::Ok);
}

#[test]
fn ena_wants_half_of_its_channels() {
    let with = |driver: &str, used| {
        with_nic(|found| {
            found.inspected.nic.driver = driver.into();
            found.inspected.nic.channels = Some((used, 8));
        })
    };
    assert_eq!(state(&with("ena", 4), "channels"), State::Ok);
    assert_eq!(state(&with("ena", 5), "channels"), State::Unfit);
    let told = check(&with("ice", 8));
    assert!(told.iter().all(|line| line.check != "channels"));
}

#[test]
fn headroom_is_known_with_the_driver() {
    assert_eq!(state(&fit(), "headroom"), State::Ok);
    let strange = with_nic(|found| found.inspected.nic.driver = "strange".into());
    assert_eq!(state(&strange, "headroom"), State::Limit);
    let generic = Facts {
        mode: Mode::Generic,
        ..strange
    };
    assert_eq!(state(&generic, "headroom"), State::Ok);
}

#[test]
fn foreign_programs_are_named() {
    let program = Program {
        id: 7,
        name: "stranger".into(),
    };
    let taken = with_nic(|found| found.inspected.xdp = Some((program.clone(), Mode::Native)));
    let (state_, told, fix) = line(&taken, "xdp");
    assert_eq!(state_, State::Unfit);
    assert!(told.contains("program 7 (stranger)"), "{told}");
    assert_eq!(fix.as_deref(), Some("ip link set dev eth0 xdp off"));
    let ours = with_nic(|found| {
        found.inspected.xdp = Some((program.clone(), Mode::Native));
        found.inspected.ours = true;
    });
    assert_eq!(state(&ours, "xdp"), State::Ok);
    let beside = with_nic(|found| found.inspected.tc = vec![program.clone()]);
    assert_eq!(state(&beside, "tc"), State::Ok);
    assert!(line(&beside, "tc").1.contains("program 7 (stranger)"));
}

#[test]
fn offloads_that_hide_packets_are_unfit_and_mended() {
    let with = |change: fn(&mut Nic)| with_nic(|found| change(&mut found.inspected.nic));
    let lro = with(|nic| nic.lro = ON);
    assert_eq!(
        line(&lro, "lro").2.as_deref(),
        Some("ethtool -K eth0 lro off")
    );
    let mends = check(&lro).into_iter().filter_map(|line| line.mend);
    assert_eq!(mends.count(), 1);
    let fixed = with(|nic| {
        nic.lro = Switch {
            on: true,
            free: false,
        };
    });
    assert_eq!(state(&fixed, "lro"), State::Unfit);
    assert!(check(&fixed).iter().all(|line| line.mend.is_none()));

    assert_eq!(state(&with(|nic| nic.rx_vlan = ON), "rxvlan"), State::Ok);
    let stripped = with(|nic| {
        nic.rx_vlan = ON;
        nic.vlans = vec!["eth0.7".into()];
    });
    assert_eq!(
        line(&stripped, "rxvlan").2.as_deref(),
        Some("ethtool -K eth0 rxvlan off")
    );

    let merged = with(|nic| nic.gro_hw = ON);
    assert_eq!(state(&merged, "rx-gro-hw"), State::Ok);
    let generic = Facts {
        mode: Mode::Generic,
        ..merged
    };
    assert_eq!(state(&generic, "rx-gro-hw"), State::Unfit);
}

#[test]
fn strict_reverse_path_filters_limit() {
    let with = |value| with_nic(|found| found.sysctls.rp_filter = value);
    assert_eq!(state(&with(Some(1)), "rp_filter"), State::Limit);
    for value in [None, Some(0), Some(2)] {
        assert_eq!(state(&with(value), "rp_filter"), State::Ok);
    }
    let off = with_nic(|found| found.sysctls.forwarding4 = false);
    assert_eq!(state(&off, "forwarding"), State::Ok);
}

const NAT: &str = "services: [{name: a, mode: nat, frontends: [\"198.51.100.1:80/tcp\"], backends: [{address: 10.0.0.1}]}]\n";

#[test]
fn faults_of_the_configuration_are_lines() {
    assert_eq!(state(&with_config(NAT), "config"), State::Ok);
    assert_eq!(
        state(&with_config("colour: blue\n"), "config"),
        State::Unfit
    );
    let host = NAT.replace("198.51.100.1", "192.0.2.1");
    let (_, told, _) = line(&with_config(&host), "config");
    assert!(
        told.contains("192.0.2.1 is an address of this host"),
        "{told}"
    );
}

#[test]
fn ports_of_nat_must_be_free() {
    let range = |mut facts: Facts| {
        facts.network.local_ports.range = 1024..=65_535;
        facts.network.local_ports.reserved = vec![8080..=8080, 9000..=9010];
        facts
    };
    assert_eq!(state(&with_config(NAT), "nat ports"), State::Ok);
    assert_eq!(state(&range(fit()), "nat ports"), State::Limit);
    let (state_, _, fix) = line(&range(with_config(NAT)), "nat ports");
    assert_eq!(state_, State::Unfit);
    assert_eq!(
        fix.as_deref(),
        Some("sysctl -w net.ipv4.ip_local_reserved_ports=8080,9000-9010,61000-65535")
    );
    // No `nat`, or an address that sockets do not take.
    let l2 = NAT.replace("mode: nat", "mode: l2");
    assert_eq!(state(&range(with_config(&l2)), "nat ports"), State::Ok);
    let own = format!("nat: {{addresses: [192.0.2.2]}}\n{NAT}");
    assert_eq!(state(&range(with_config(&own)), "nat ports"), State::Ok);
}

#[test]
fn who_masquerades_is_named() {
    let with = |mut facts: Facts, table: &str, chain: &str| {
        facts.masquerades = Ok(vec![Masquerade {
            table: table.into(),
            chain: chain.into(),
        }]);
        facts
    };
    let kube_proxy = |facts| with(facts, "nat", "KUBE-POSTROUTING");
    assert_eq!(state(&fit(), "masquerade"), State::Ok);
    assert_eq!(state(&kube_proxy(fit()), "masquerade"), State::Limit);
    assert_eq!(
        state(&kube_proxy(with_config(NAT)), "masquerade"),
        State::Unfit
    );
    let own = format!("nat: {{addresses: [192.0.2.2]}}\n{NAT}");
    assert_eq!(
        state(&kube_proxy(with_config(&own)), "masquerade"),
        State::Ok
    );
    let l2 = NAT.replace("mode: nat", "mode: l2");
    assert_eq!(
        state(&kube_proxy(with_config(&l2)), "masquerade"),
        State::Ok
    );
    let docker = with(with_config(NAT), "nat", "POSTROUTING");
    assert_eq!(state(&docker, "masquerade"), State::Limit);
    let unknown = Facts {
        masquerades: Err("not permitted".into()),
        ..fit()
    };
    assert_eq!(state(&unknown, "masquerade"), State::Limit);
}

#[test]
fn another_proxy_by_bpf_is_refused() {
    let beside = |kind, pin: &str| Facts {
        proxies: vec![Proxy {
            kind,
            pin: pin.to_owned(),
        }],
        ..fit()
    };
    assert_eq!(state(&fit(), "service proxy"), State::Ok);
    for (kind, pin, who, setting) in [
        (Kind::Cilium, "a/b", "Cilium", "kubeProxyReplacement=false"),
        (Kind::Calico, "c/d", "Calico", "bpfEnabled: false"),
    ] {
        let facts = beside(kind, pin);
        assert_eq!(state(&facts, "service proxy"), State::Unfit);
        let (_, found, fix) = line(&facts, "service proxy");
        assert!(found.contains(who) && found.contains(&format!("/sys/fs/bpf/{pin}")));
        assert!(fix.unwrap().contains(setting));
    }
}

#[test]
fn the_heartbeat_has_an_age() {
    let agent = |silence: Option<u64>, bypass| Facts {
        agent: Some(Agent {
            silence: silence.map(Duration::from_secs),
            bypass,
        }),
        ..fit()
    };
    assert_eq!(state(&agent(Some(2), None), "heartbeat"), State::Ok);
    assert_eq!(state(&agent(Some(60), None), "heartbeat"), State::Limit);
    assert_eq!(state(&agent(None, None), "heartbeat"), State::Limit);
    for bypass in [Bypass::Command, Bypass::Silent, Bypass::Unconfirmed] {
        let facts = agent(Some(60), Some(bypass));
        assert_eq!(state(&facts, "heartbeat"), State::Limit);
        assert!(line(&facts, "heartbeat").1.contains("everything passes"));
    }
    let nothing = Facts {
        agent: None,
        ..fit()
    };
    assert_eq!(state(&nothing, "heartbeat"), State::Ok);
}
