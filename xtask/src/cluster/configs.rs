//! Configuration files of a node's programs.

use super::layout::{CONTROL, PODS};
use std::path::Path;

/// Debian's package of the CNI plugins.
const CNI_PROGRAMS: &str = "/usr/lib/cni";

/// Without `CAP_SYS_RESOURCE`, which containers and small VMs lack, runc may not make a process less likely to be killed
/// than itself, and says "can't get final child's PID from pipe".
pub(super) fn containerd(cni: &Path, pause: &str) -> String {
    format!(
        "version = 2
disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]
[plugins.\"io.containerd.grpc.v1.cri\"]
sandbox_image = \"{pause}\"
restrict_oom_score_adj = true
[plugins.\"io.containerd.grpc.v1.cri\".cni]
bin_dir = \"{CNI_PROGRAMS}\"
conf_dir = \"{}\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
",
        cni.display()
    )
}

/// Whoever reaches a kubelet is on the cluster's own wire, so it asks nobody for leave. Images came by hand and cannot
/// be fetched again: they are never collected, however full the disk is, and no pod is evicted for it.
pub(super) fn kubelet(cgroup: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
clusterDNS: [{}]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {{}}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeLeaseDurationSeconds: 12
nodeStatusUpdateFrequency: 4s
oomScoreAdj: 0
resolvConf: \"\"
volumePluginDir: /var/lib/kubelet/plugins-flex
",
        CONTROL.v4
    )
}

/// The size of the connection table is the whole machine's.
pub(super) fn kube_proxy(mode: &str, node: &str, kubeconfig: &Path) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
hostnameOverride: {node}
clusterCIDR: {PODS}
clientConnection: {{kubeconfig: \"{}\"}}
conntrack: {{maxPerCore: 0, min: 0}}
oomScoreAdj: 0
",
        kubeconfig.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_containerds_config_begin_lines() {
        let text = containerd(Path::new("/x/node1/cni"), "localhost/pause:1");
        let tables = text.lines().filter(|line| line.starts_with('[')).count();
        assert_eq!(tables, 3, "{text}");
        assert!(
            text.contains("\nsandbox_image = \"localhost/pause:1\"\n"),
            "{text}"
        );
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.ends_with("zfs\"]")),
            "{text}"
        );
    }

    #[test]
    fn kube_proxy_knows_pods_of_both_families() {
        let text = kube_proxy("nftables", "node1", Path::new("/k"));
        assert!(
            text.contains("clusterCIDR: 10.244.0.0/16,fd00:244::/48\n"),
            "{text}"
        );
    }
}
