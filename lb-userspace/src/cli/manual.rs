//! `millrace manual FOLDER`: the manual pages, one a verb, for whoever makes a package.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Exit, Failure};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    folder: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    // A page for `help` would say what each page says.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write(&command, &args.folder)?;
    Ok(Exit::Ok)
}

fn write(command: &Command, folder: &Path) -> Result<(), Failure> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(verb, folder)?;
    }
    // System administration: the program lies in sbin.
    let page = Man::new(command.clone()).section("8").manual("Millrace");
    page.generate_to(folder)
        .with_context(|| folder.display().to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_page() {
        let folder = std::env::temp_dir().join(format!("millrace-manual-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        run(&Args {
            folder: folder.clone(),
        })
        .unwrap();
        for verb in Cli::command().get_subcommands() {
            let page = folder.join(format!("millrace-{}.8", verb.get_name()));
            assert_eq!(page.is_file(), !verb.is_hide_set(), "{}", page.display());
        }
        let all = std::fs::read_to_string(folder.join("millrace.8")).unwrap();
        assert!(all.contains("millrace\\-run(8)"), "{all}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
