//! On a real Kubernetes: control plane, kubelets, kube-proxy, pods, and a client outside.
//!
//! Each test has Services and VIPs of its own. Agents are installed by the first test that wants them, and uninstalled by
//! the one that wants none.

#[path = "cluster/agents.rs"]
mod agents;
#[path = "cluster/baseline.rs"]
mod baseline;
#[path = "cluster/churn.rs"]
mod churn;
#[path = "cluster/dsr.rs"]
mod dsr;
#[path = "cluster/edits.rs"]
mod edits;
#[path = "cluster/explain.rs"]
mod explain;
#[path = "cluster/flows.rs"]
mod flows;
#[path = "cluster/forgotten.rs"]
mod forgotten;
#[path = "cluster/frontends.rs"]
mod frontends;
#[path = "cluster/garbage.rs"]
mod garbage;
#[path = "cluster/handover.rs"]
mod handover;
#[path = "cluster/options.rs"]
mod options;
#[path = "cluster/outages.rs"]
mod outages;
#[path = "cluster/ranges.rs"]
mod ranges;
#[path = "cluster/selection.rs"]
mod selection;
#[path = "cluster/stack.rs"]
mod stack;
#[path = "cluster/uninstall.rs"]
mod uninstall;
