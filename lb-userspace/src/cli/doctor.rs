//! `millrace doctor`: is this machine fit, and what would make it so? Nothing changes without `--fix`, and what that changed
//! `--undo` and `detach` change back.

use std::path::PathBuf;

use anyhow::Context as _;
use tokio::runtime;

use super::{
    Exit, Failure, Global,
    show::{print, show},
    table::{or_dash, table},
};
use crate::{
    attach::{self, DEFAULT_PIN_ROOT, DEFAULT_RUN_FOLDER},
    doctor::{self, Facts, Line, Question, State, Tunnels},
    net,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Configuration file to judge the machine for
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Interface to look at (may be given again); those of the configuration or of the default routes by default
    #[arg(long = "interface", value_name = "IF")]
    interfaces: Vec<String>,
    /// Mend what can be mended by a switch, and write down how it was
    #[arg(long)]
    fix: bool,
    /// Change back what `--fix` has changed
    #[arg(long, conflicts_with = "fix")]
    undo: bool,
    /// Folder of the pins
    #[arg(long, value_name = "PATH", env = "MILLRACE_PIN_ROOT", default_value = DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
    /// Folder of locks, marks and what `--fix` has changed
    #[arg(long, value_name = "PATH", env = "MILLRACE_RUN_FOLDER", default_value = DEFAULT_RUN_FOLDER)]
    run_folder: PathBuf,
}

/// Ends with 0 (fit), 12 (fit with limits) or 13 (unfit).
pub(super) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    if args.undo {
        return undo(args);
    }
    let mut lines = lines(args)?;
    if args.fix {
        let mends = lines.iter().filter_map(|line| line.mend.as_ref());
        for mend in mends {
            if attach::mend(&args.pin_root, &args.run_folder, mend)? {
                eprintln!("done: {mend}");
            }
        }
        lines = self::lines(args)?;
    }
    show(global, || Ok(lines.clone()), |lines, _| draw(lines))?;
    Ok(match doctor::verdict(&lines) {
        State::Ok => Exit::Ok,
        State::Limit => Exit::Limits,
        State::Unfit => Exit::Unfit,
    })
}

fn lines(args: &Args) -> Result<Vec<Line>, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    let network = runtime.block_on(net::snapshot(net::xdp_send));
    let question = Question {
        config: args.config.clone(),
        interfaces: args.interfaces.clone(),
        pin_root: args.pin_root.clone(),
    };
    let tunnels = runtime.block_on(Tunnels::probe(&args.pin_root));
    let network = network.context("this host's network")?;
    let facts = Facts::gather(&question, network, tunnels)?;
    Ok(doctor::check(&facts))
}

fn undo(args: &Args) -> Result<Exit, Failure> {
    let only = (!args.interfaces.is_empty()).then_some(args.interfaces.as_slice());
    let undone = attach::undo(&args.pin_root, &args.run_folder, only)?;
    let mut text = undone.to_string();
    if text.is_empty() {
        "nothing to undo\n".clone_into(&mut text);
    }
    print(&text)?;
    Ok(Exit::Ok)
}

fn draw(lines: &[Line]) -> String {
    let rows = lines.iter().map(|line| {
        let check = match &line.interface {
            Some(interface) => format!("{interface} {}", line.check),
            None => line.check.clone(),
        };
        [
            check,
            line.state.name().to_owned(),
            line.found.clone(),
            or_dash(line.fix.as_deref()),
        ]
    });
    let verdict = match doctor::verdict(lines) {
        State::Ok => "fit",
        State::Limit => "fit, with limits",
        State::Unfit => "unfit",
    };
    format!(
        "{}\n{verdict}\n",
        table(["CHECK", "STATE", "FOUND", "FIX"], rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ends_with_the_verdict() {
        let line = |check: &str, interface: Option<&str>, state, fix: Option<&str>| Line {
            check: check.into(),
            interface: interface.map(Into::into),
            state,
            found: "on".into(),
            fix: fix.map(Into::into),
            mend: None,
        };
        let lines = vec![
            line("jit", None, State::Ok, None),
            line(
                "lro",
                Some("eth0"),
                State::Unfit,
                Some("ethtool -K eth0 lro off"),
            ),
        ];
        assert_eq!(
            draw(&lines),
            "\
CHECK     STATE  FOUND  FIX
jit       ok     on     -
eth0 lro  unfit  on     ethtool -K eth0 lro off
unfit
"
        );
    }
}
