//! Config files.

use std::sync::LazyLock;

use lb_userspace::{
    config::Config,
    dataplane::Fake,
    desired::{self, Drains},
    net::Facts,
    reconcile::{Engine, FlushError, Start},
};

use crate::host;

/// A file is refused with places and reasons, or it is good; then the agent can serve it on maps in memory, and another
/// agent finds nothing to change.
pub(super) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let config = match Config::parse(&text, "lb.yaml") {
        Ok(config) => config,
        Err(errors) => {
            assert!(!errors.errors.is_empty(), "refused without a reason");
            let lines = text.lines().count() as u64 + 1;
            for error in &errors.errors {
                assert!(error.at.line <= lines, "{error:?}: there is no such line");
                assert!(!error.what.is_empty(), "{error:?}");
            }
            assert!(errors.to_string().starts_with("lb.yaml:"));
            return;
        }
    };
    if !desired::check(&config, &FACTS).is_empty() {
        return;
    }
    let Some(maps) = serve(&config, Fake::new(config.limits)) else {
        return;
    };
    let again = serve(&config, maps.clone()).expect("it fitted before");
    assert!(
        maps_alike(&maps, &again),
        "{maps}\n--- after a restart\n{again}"
    );
}

/// The maps with the config in them; nothing if it does not fit.
fn serve(config: &Config, maps: Fake) -> Option<Fake> {
    let start = Start {
        config: config.clone(),
        facts: FACTS.clone(),
        drains: Drains::default(),
        // The same on each run.
        hash_key: Some(config.cluster_key.map_or([1, 2], |key| key.0)),
        hz: 1000,
        node: String::new(),
        agents: None,
    };
    let mut engine = Engine::start(start, maps).expect("maps in memory can be read");
    match engine.flush() {
        Ok(_) => Some(engine.dataplane_mut().clone()),
        Err(FlushError::Plan { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// But for the number of grace periods.
fn maps_alike(a: &Fake, b: &Fake) -> bool {
    let graces = a.graces;
    *a == Fake {
        graces,
        ..b.clone()
    }
}

static FACTS: LazyLock<Facts> = LazyLock::new(host::facts);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_with_every_field_is_served() {
        let text = include_str!("../../fuzz/corpus/config/every-field");
        let config = Config::parse(text, "lb.yaml").unwrap();
        assert_eq!(desired::check(&config, &FACTS), []);
        let maps = serve(&config, Fake::new(config.limits)).expect("it fits");
        assert_eq!(maps.frontends.len(), 8, "{maps}");
    }
}
