//! `cargo xtask bench`: the measurements behind the README's figures.

use crate::{Outcome, cargo, cluster, setup, test::on_cluster};
use clap::ValueEnum;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    subject: Subject,
    /// Print JSON, and nothing else, to stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Nanoseconds per packet of each case, net of an empty program
    Packet,
    /// Packets and new flows per second through namespaces, beside an nftables map
    Path,
    /// Time until one change among 10,000 services is in the maps, and a cold start
    Plan,
    /// The same of one endpoint among 1,000 Services of a cluster, and what memory and processor that takes
    Cluster,
    /// The same from the write of a slice through an API server on, in a cluster of its own
    Kubernetes,
}

pub(crate) fn run(args: &Args) -> Outcome {
    setup::ensure()?;
    let subject = match args.subject {
        Subject::Packet => "packet",
        Subject::Path => "path",
        Subject::Plan => "plan",
        Subject::Cluster => "cluster",
        Subject::Kubernetes => "kubernetes",
    };
    let mut words = vec![subject];
    if args.json {
        words.push("--json");
    }
    if args.subject != Subject::Kubernetes {
        return cargo::run_harness("bench", &words, None);
    }
    let folder = cluster::folder(on_cluster::FOLDER)?;
    let done = on_cluster::prepare(&folder)
        .and_then(|()| cargo::run_harness("bench", &words, Some(&folder)));
    // Whatever of it has come up.
    cluster::down(&folder)?;
    done
}
