//! The suite that wants a Kubernetes: gets one of its own, with our image on all nodes, which ends with it.

use super::{
    output::{Skip, Tally},
    steps::{Lane, Step},
};
use crate::{cluster, image, setup};
use anyhow::Result;
use std::{fs, io::Write, path::Path};

/// The test file, and the cluster's folder below `target/`: a developer's own cluster is another.
pub(super) const FILE: &str = "cluster";
pub(crate) const FOLDER: &str = "cluster-of-tests";

const WANTED: cluster::Up = cluster::Up {
    nodes: 2,
    kube_proxy: cluster::KubeProxy::Nftables,
    cni: cluster::Cni::Bridge,
};

/// Whether some of its tests have this in their names. If none has, no cluster is started to find that out.
pub(super) fn has(root: &Path, filter: &str) -> bool {
    holds(&root.join("tests/tests").join(FILE), filter)
}

/// Whether some file below `folder` has this in it.
fn holds(folder: &Path, text: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        let has = |file: String| file.contains(text);
        holds(&path, text) || fs::read_to_string(&path).is_ok_and(has)
    })
}

/// The same tests, with a cluster in `folder` while they run.
pub(super) fn wrap(tests: Step, folder: &Path) -> Step {
    let folder = folder.to_path_buf();
    let run = move |out: &mut dyn Write| {
        if let Some(need) = cluster::need(WANTED.cni)? {
            let skip = Skip {
                test: FILE.to_owned(),
                need,
            };
            return Ok((
                true,
                Tally {
                    skipped: vec![skip],
                    ..Tally::default()
                },
            ));
        }
        let done = match prepare(&folder) {
            Ok(()) => (tests.run)(out),
            Err(error) => {
                eprintln!("{error:#}");
                Ok((false, Tally::default()))
            }
        };
        if let Err(error) = cluster::down(&folder) {
            eprintln!("{error:#}");
            return Ok((false, done?.1));
        }
        done
    };
    Step {
        name: FILE.to_owned(),
        lane: Lane::Cluster,
        run: Box::new(run),
    }
}

/// A cluster in `folder`, instead of what an interrupted run left there.
pub(crate) fn prepare(folder: &Path) -> Result<()> {
    setup::ensure_for_cluster()?;
    cluster::down(folder)?;
    // Builds first: two cores are few for a compiler beside a cluster that starts.
    cluster::provide(WANTED.cni)?;
    let archive = image::file()?;
    image::make(&archive)?;
    cluster::up(folder, WANTED)?;
    cluster::load(folder, &archive)
}
