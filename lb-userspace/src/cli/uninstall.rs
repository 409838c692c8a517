//! `millrace uninstall`, or `kubectl millrace uninstall`: the cluster as it was. By the rights of who asks.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::runtime;

use super::{Exit, ExitWith as _, Failure, duration, show::print};
use crate::{
    cluster,
    uninstall::{self, Plan},
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Say what would be done; nothing changes
    #[arg(long)]
    dry_run: bool,
    /// How to reach the cluster; $KUBECONFIG or ~/.kube/config by default
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How long to wait for the nodes: 30s, 2m
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    timeout: Duration,
    /// Give this node up: what is attached there stays (may be given again)
    #[arg(long = "leave", value_name = "NODE")]
    leave: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    runtime.block_on(uninstall(args))
}

async fn uninstall(args: &Args) -> Result<Exit, Failure> {
    let client = cluster::connect(args.kubeconfig.as_deref()).await;
    let client = client.context("the cluster").exit(Exit::Usage)?;
    let plan = uninstall::plan(&client, &args.leave).await;
    let plan = plan.map_err(anyhow::Error::from)?;
    if args.dry_run || (plan.nodes.is_empty() && plan.objects.is_empty()) {
        print(&said(&plan))?;
        return Ok(Exit::Ok);
    }
    let mut told = Ok(());
    let done = uninstall::carry_out(&client, &plan, args.timeout, |line| {
        if told.is_ok() {
            told = print(&format!("{line}\n"));
        }
    });
    done.await.map_err(anyhow::Error::from)?;
    told?;
    Ok(Exit::Ok)
}

fn said(plan: &Plan) -> String {
    let node = |(name, ready): (&String, &bool)| {
        let state = if *ready { "" } else { " (not ready)" };
        format!("detach on {name}{state}\n")
    };
    let nodes = plan.nodes.iter().map(node);
    let objects = plan
        .objects
        .iter()
        .map(|object| format!("delete {object}\n"));
    let text: String = nodes.chain(objects).collect();
    if text.is_empty() {
        "nothing of ours is installed\n".to_owned()
    } else {
        text
    }
}
