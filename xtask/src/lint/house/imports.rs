//! Imports of the agent point one way, that of the data: cluster → desired → plan → dataplane. What decides knows
//! neither the cluster's client nor the kernel's interface, what applies knows no Service.

use super::{is_test, production_lines};

struct Rule {
    /// Module of the agent, as a path below `lb-userspace/src`.
    module: &'static str,
    /// Crates and modules that it must not name.
    foreign: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        module: "desired",
        foreign: &[
            "aya",
            "kube",
            "k8s_openapi",
            "rtnetlink",
            "netlink_packet_route",
            "crate::plan",
            "crate::dataplane",
        ],
    },
    Rule {
        module: "plan",
        foreign: &[
            "aya",
            "kube",
            "k8s_openapi",
            "rtnetlink",
            "netlink_packet_route",
            "crate::cluster",
        ],
    },
    Rule {
        module: "dataplane",
        foreign: &[
            "kube",
            "k8s_openapi",
            "crate::cluster",
            "crate::config",
            "crate::desired",
        ],
    },
];

pub(super) fn breaches(name: &str, text: &str) -> Vec<String> {
    let Some(path) = name.strip_prefix("lb-userspace/src/") else {
        return Vec::new();
    };
    let Some(rule) = RULES.iter().find(|rule| belongs(path, rule.module)) else {
        return Vec::new();
    };
    if is_test(name) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in production_lines(text) {
        let code = line.split("//").next().unwrap_or_default();
        found.extend(
            rule.foreign
                .iter()
                .filter(|&&foreign| names(code, foreign))
                .map(|foreign| {
                    format!(
                        "{name}:{number}: `{}` must not know `{foreign}`",
                        rule.module
                    )
                }),
        );
    }
    found
}

fn belongs(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Whether a line of code names the crate or module as the head of a path: `use aya;`, `aya::maps::Array`.
fn names(code: &str, foreign: &str) -> bool {
    code.match_indices(foreign).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + foreign.len()..];
        let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let imported = code
            .trim_start()
            .trim_start_matches("pub ")
            .starts_with("use ");
        whole && (after.starts_with("::") || imported)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn desired_state_knows_no_kernel_interface() {
        let found = breaches(
            "lb-userspace/src/desired/mod.rs",
            "use std::fmt;\nuse aya::maps::Array;\n",
        );
        assert_eq!(
            found,
            ["lb-userspace/src/desired/mod.rs:2: `desired` must not know `aya`"]
        );
        assert_eq!(
            breaches("lb-userspace/src/plan.rs", "fn f(x: aya::Ebpf) {}").len(),
            1
        );
    }

    #[test]
    fn dataplane_knows_neither_config_nor_services() {
        let name = "lb-userspace/src/dataplane/bpf.rs";
        assert_eq!(breaches(name, "use crate::desired::Frontend;").len(), 1);
        assert_eq!(breaches(name, "use crate::config;").len(), 1);
        assert_eq!(
            breaches(name, "use aya::maps::HashMap;\nuse crate::plan::Op;"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn comments_tests_longer_names_and_other_modules_are_free() {
        let text = "// aya::Ebpf does this\nuse crate::desired_state;\nlet kube = layaya::x();\n";
        assert_eq!(
            breaches("lb-userspace/src/desired/mod.rs", text),
            Vec::<String>::new()
        );
        assert_eq!(
            breaches("lb-userspace/src/desired/tests.rs", "use aya::Ebpf;"),
            Vec::<String>::new()
        );
        assert_eq!(
            breaches("lb-userspace/src/attach/mod.rs", "use aya::Ebpf;"),
            Vec::<String>::new()
        );
        assert_eq!(
            breaches("lb-common/src/desired.rs", "use aya::Ebpf;"),
            Vec::<String>::new()
        );
    }
}
