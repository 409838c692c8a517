//! Output: once or again and again, as a table or for machines.

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;

use super::{Failure, Global, Output};

/// Fetches and prints; with `--watch` each second, on a terminal over the last picture.
pub(super) fn show<T: Serialize>(
    global: &Global,
    fetch: impl Fn() -> Result<T, Failure>,
    draw: impl Fn(&T, bool) -> String,
) -> Result<(), Failure> {
    loop {
        let value = fetch()?;
        let text = render(global.output, &value, &draw)?;
        if global.watch && io::stdout().is_terminal() {
            print("\x1b[H\x1b[2J")?;
        }
        print(&text)?;
        if !global.watch {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn render<T: Serialize>(
    output: Output,
    value: &T,
    draw: impl Fn(&T, bool) -> String,
) -> Result<String, Failure> {
    let mut text = match output {
        Output::Table => draw(value, false),
        Output::Wide => draw(value, true),
        Output::Json => serde_json::to_string_pretty(value).context("JSON")?,
        Output::Yaml => serde_saphyr::to_string(value).context("YAML")?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// A closed pipe (`millrace flows | head`) ends the program quietly.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome.context("standard output")?),
    }
}
