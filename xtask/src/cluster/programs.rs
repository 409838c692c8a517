//! Kubernetes' programs: those in `KUBEBUILDER_ASSETS`, else those that were built once into the cache.

use super::{
    Cni,
    modules::{self, Module, Parts, Workshop},
};
use crate::setup;
use anyhow::{Context as _, Result, bail};
use std::{
    env,
    path::{Path, PathBuf},
};

/// Where a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    name: &'static str,
    module: Module,
    /// Path of the command's package.
    package: &'static str,
    parts: Parts,
    /// What it takes on two cores, from nothing.
    about: &'static str,
}

pub(crate) const KUBERNETES: Module = Module {
    name: "kubernetes",
    path: "k8s.io/kubernetes",
    version: "v1.36.3",
};
const ETCD: Module = Module {
    name: "etcd",
    path: "go.etcd.io/etcd/server/v3",
    version: "v3.7.3",
};
const COREDNS: Module = Module {
    name: "coredns",
    path: "github.com/coredns/coredns",
    version: "v1.14.3",
};
const FLANNEL: Module = Module {
    name: "flannel",
    path: "github.com/flannel-io/flannel",
    version: "v0.28.10",
};

/// The slowest first: what follows finds most of its packages compiled.
const SOURCES: [Source; 10] = [
    kubernetes("kube-apiserver", "cmd/kube-apiserver", "5 minutes"),
    kubernetes(
        "kube-controller-manager",
        "cmd/kube-controller-manager",
        "a minute",
    ),
    kubernetes("kube-scheduler", "cmd/kube-scheduler", "half a minute"),
    kubernetes("kubelet", "cmd/kubelet", "half a minute"),
    kubernetes("kube-proxy", "cmd/kube-proxy", "half a minute"),
    kubernetes("kubectl", "cmd/kubectl", "half a minute"),
    // The server in tests' pods: HTTP and UDP, answers with its pod's name or its client's address.
    kubernetes("agnhost", "test/images/agnhost", "10 seconds"),
    Source {
        name: "etcd",
        module: ETCD,
        package: "go.etcd.io/etcd/server/v3",
        parts: Parts::ALL,
        about: "a minute",
    },
    Source {
        name: "coredns",
        module: COREDNS,
        package: "github.com/coredns/coredns",
        // Those of its configuration here; most of the others are the libraries of clouds.
        parts: Parts {
            main: "coredns.go",
            without: &["plugin"],
            with: &["plugin/errors", "plugin/kubernetes", "plugin/ready"],
        },
        about: "half a minute",
    },
    Source {
        name: "flanneld",
        module: FLANNEL,
        package: "github.com/flannel-io/flannel",
        // Backends: C on x86-64, and one whose modules not every proxy has.
        parts: Parts {
            main: "main.go",
            without: &["udp", "tencentvpc"],
            with: &[],
        },
        about: "2 minutes",
    },
];

const fn kubernetes(name: &'static str, package: &'static str, about: &'static str) -> Source {
    Source {
        name,
        module: KUBERNETES,
        package,
        parts: Parts::ALL,
        about,
    }
}

/// Files of all programs.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    /// What `KUBEBUILDER_ASSETS` names, as envtest has it.
    assets: Option<PathBuf>,
    cache: PathBuf,
}

impl Programs {
    /// Builds what is nowhere of what is wanted.
    pub(super) fn provide(cni: Cni) -> Result<Self> {
        let programs = Self::named()?;
        let lacking: Vec<_> = programs.lacking(cni).collect();
        if lacking.is_empty() {
            return Ok(programs);
        }
        let workshop = Workshop::open(programs.cache.join("go"))?;
        for (number, source) in lacking.iter().enumerate() {
            eprintln!(
                "cluster: building {} of {} {} ({} of {}; about {} on two cores, once)",
                source.name,
                source.module.name,
                source.module.version,
                number + 1,
                lacking.len(),
                source.about,
            );
            workshop
                .build(
                    &source.module,
                    &source.whole_package(),
                    source.parts,
                    &programs.of(source),
                )
                .with_context(|| source.name)?;
        }
        Ok(programs)
    }

    fn named() -> Result<Self> {
        Ok(Self {
            assets: env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from),
            cache: setup::cache()?,
        })
    }

    /// What [`Self::provide`] would lack to build what is nowhere; none if it lacks nothing.
    pub(super) fn need(cni: Cni) -> Result<Option<String>> {
        let programs = Self::named()?;
        let all = programs.lacking(cni).next().is_none();
        Ok(if all { None } else { modules::need() })
    }

    fn lacking(&self, cni: Cni) -> impl Iterator<Item = &'static Source> {
        SOURCES
            .iter()
            .filter(move |source| source.module != FLANNEL || cni == Cni::Flannel)
            .filter(|source| !self.of(source).is_file())
    }

    pub(super) fn file(&self, name: &str) -> Result<PathBuf> {
        match SOURCES.iter().find(|source| source.name == name) {
            Some(source) => Ok(self.of(source)),
            None => bail!("no program {name} is known"),
        }
    }

    /// Images of the cluster's own pods are kept beside the programs.
    pub(super) fn images(&self) -> PathBuf {
        folder(&self.cache, &KUBERNETES).join("images")
    }

    fn of(&self, source: &Source) -> PathBuf {
        let asset = self.assets.as_ref().map(|folder| folder.join(source.name));
        asset
            .filter(|file| file.is_file())
            .unwrap_or_else(|| folder(&self.cache, &source.module).join(source.name))
    }
}

impl Source {
    fn whole_package(&self) -> String {
        match self.module {
            KUBERNETES => format!("{}/{}", KUBERNETES.path, self.package),
            _ => self.package.to_owned(),
        }
    }
}

/// Another version is another folder.
fn folder(cache: &Path, module: &Module) -> PathBuf {
    cache.join(format!("{}-{}", module.name, module.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_assets_lack_comes_from_the_cache() {
        let programs = Programs {
            // A folder that has a `tests` and no kubelet.
            assets: Some(env!("CARGO_MANIFEST_DIR").into()),
            cache: "/cache".into(),
        };
        assert_eq!(
            programs.file("kubelet").ok(),
            Some("/cache/kubernetes-v1.36.3/kubelet".into())
        );
        assert_eq!(
            programs.file("etcd").ok(),
            Some("/cache/etcd-v3.7.3/etcd".into())
        );
        assert!(programs.file("dockerd").is_err());
    }
}
