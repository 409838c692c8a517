//! `millrace run`: the agent.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::{Exit, ExitWith as _, Failure, Global, duration};
use crate::{attach, supervise};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Configuration file (YAML); watched, and applied when it changes
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Let everything pass after this time unless `millrace confirm` is given, with or without an agent: 30s, 2m
    #[arg(long = "try", value_name = "TIME", value_parser = trial)]
    trial: Option<Duration>,
    /// Folder on a BPF filesystem for programs, maps and links
    #[arg(long, value_name = "PATH", env = "MILLRACE_PIN_ROOT", default_value = attach::DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
    /// Folder of locks and marks
    #[arg(long, value_name = "PATH", env = "MILLRACE_RUN_FOLDER", default_value = attach::DEFAULT_RUN_FOLDER)]
    run_folder: PathBuf,
    /// Log of the packet path; anything but off costs each packet time
    #[arg(long, value_enum, default_value_t = PacketLog::Off, value_name = "LEVEL")]
    packet_log: PacketLog,
    /// What the agent logs: a level, or directives as `info,lb_userspace::net=debug`
    #[arg(
        long,
        env = "MILLRACE_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log_level: String,
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum LogFormat {
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum PacketLog {
    Off,
    Debug,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    log(args)?;
    supervise::run(&supervise::Options {
        config: args.config.clone(),
        pin_root: args.pin_root.clone(),
        run_folder: args.run_folder.clone(),
        socket: global.socket.clone(),
        trial: args.trial,
        packet_log: match args.packet_log {
            PacketLog::Off => 0,
            // aya-log counts from error (1).
            PacketLog::Debug => 4,
        },
    })?;
    Ok(Exit::Ok)
}

/// Long enough to type `millrace confirm`, short enough to wait for.
fn trial(text: &str) -> Result<Duration, String> {
    let term = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(24);
    if range.contains(&term) {
        Ok(term)
    } else {
        Err("use 1s to 24h".to_owned())
    }
}

/// To standard error. In the text form without colours: it ends up in a journal or a container's log.
fn log(args: &Args) -> Result<(), Failure> {
    // At debug these tell of every relocation and message; what the cluster's client finds we say ourselves, once.
    let mut directives = format!(
        "aya=info,aya_obj=info,netlink_proto=info,kube_client=off,kube_runtime=off,{}",
        args.log_level
    );
    if !matches!(args.packet_log, PacketLog::Off) {
        directives.push_str(",millrace_bpf=debug,lb_common=debug");
    }
    let filter = EnvFilter::try_new(&directives)
        .with_context(|| format!("--log-level {}", args.log_level))
        .exit(Exit::Usage)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
