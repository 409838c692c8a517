//! A1: which objects are ours.

use super::*;

fn served(service: Service) -> Vec<String> {
    let all = Options {
        external_ips: true,
        node_ports: true,
        cluster_ips: true,
        ..options()
    };
    World::with(all, service, vec![endpoint("10.1.0.1", "n1")]).frontends("web")
}

/// A1.1
#[test]
fn an_external_name_has_no_frontend_even_with_a_cluster_ip() {
    let service = Service {
        kind: "ExternalName".into(),
        ..web()
    };
    assert!(served(service).is_empty());
    assert!(!served(web()).is_empty());
}

/// A1.2
#[test]
fn a_headless_service_has_no_frontend() {
    for cluster_ip in ["", "None"] {
        let service = Service {
            cluster_ip: cluster_ip.into(),
            ..web()
        };
        assert!(served(service).is_empty(), "{cluster_ip:?}");
    }
}

/// A1.3, A1.4
#[test]
fn a_label_of_another_proxy_is_deletion_and_creation() {
    let mut world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    assert_eq!(world.usable("web", &vip()), ["local 10.1.0.1:8080"]);
    let other = Service {
        for_another_proxy: true,
        ..web()
    };
    assert_eq!(world.tell([a_service("web", other)]), ["web"]);
    assert_eq!(world.built("web"), (None, vec![]));
    assert_eq!(world.tell([a_service("web", web())]), ["web"]);
    assert_eq!(world.usable("web", &vip()), ["local 10.1.0.1:8080"]);
    // Slices inherit the label.
    let other = Slice {
        for_another_proxy: true,
        ..slice(vec![endpoint("10.1.0.1", "n1")])
    };
    assert_eq!(world.tell([a_slice("web-1", other)]), ["web"]);
    assert!(world.usable("web", &vip()).is_empty());
}

/// A1.6
#[test]
fn a_service_that_is_no_load_balancer_any_more_has_no_vip() {
    let mut world = World::with(options(), web(), vec![endpoint("10.1.0.1", "n1")]);
    // What is left in the status belongs to nobody.
    let service = Service {
        kind: "ClusterIP".into(),
        ..web()
    };
    assert_eq!(world.tell([a_service("web", service)]), ["web"]);
    assert!(world.frontends("web").is_empty());
}

/// A1.7
#[test]
fn a_service_that_is_made_anew_has_nothing_of_the_old_one() {
    let old = Service {
        affinity: true,
        ..web()
    };
    let mut world = World::with(options(), old, vec![endpoint("10.1.0.1", "n1")]);
    let new = Service {
        uid: "uid-new".into(),
        created: 2000,
        ingress: vec![ingress("203.0.113.99")],
        ..web()
    };
    world.tell([Change::Deleted(Kind::Service, key("web"))]);
    assert_eq!(world.built("web").0, None);
    world.tell([
        Change::Deleted(Kind::EndpointSlice, key("web-1")),
        a_service("web", new.clone()),
    ]);
    let mut fresh = World::new(options());
    fresh.tell([a_service("web", new)]);
    assert_eq!(world.everything(), fresh.everything());
    // Another one may have the VIP now.
    let heir = Service {
        uid: "uid-heir".into(),
        created: 3000,
        ..web()
    };
    world.tell([a_service("heir", heir)]);
    assert_eq!(world.skips("heir"), Vec::<String>::new());
}

/// A1.8
#[test]
fn the_oldest_service_has_a_frontend_that_two_ask_for() {
    let young = Service {
        uid: "uid-young".into(),
        created: 2000,
        ports: vec![port("http", "TCP", 80, 0), port("other", "TCP", 81, 0)],
        ingress: vec![ingress(VIP)],
        ..web()
    };
    let told = "Service default/young FrontendConflict: 203.0.113.10:80/tcp is that of Service default/web, \
                which is older; use another port or address";
    for young_first in [true, false] {
        let mut world = World::new(options());
        let mut changes = vec![a_service("young", young.clone()), a_service("web", web())];
        if !young_first {
            changes.reverse();
        }
        assert_eq!(world.tell(changes), ["web", "young"]);
        assert_eq!(world.skips("young"), [told]);
        assert_eq!(world.frontends("young"), ["203.0.113.10:81/tcp"]);
        assert!(world.skips("web").is_empty());
        // The winner goes: the other one has it at once, and is told of.
        let gone = Change::Deleted(Kind::Service, key("web"));
        assert_eq!(world.tell([gone]), ["web", "young"]);
        assert_eq!(
            world.frontends("young"),
            ["203.0.113.10:80/tcp", "203.0.113.10:81/tcp"]
        );
        assert!(world.skips("young").is_empty());
    }
    // Of one age, the lower UID.
    let twin = Service {
        uid: "a".into(),
        ..web()
    };
    let mut world = World::new(options());
    world.tell([a_service("web", web()), a_service("twin", twin)]);
    assert!(world.frontends("web").is_empty());
    assert_eq!(world.frontends("twin").len(), 2);
}
