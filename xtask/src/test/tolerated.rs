//! The needs that a test in CI may miss: one a line, `#` starts a comment.

use anyhow::{Context as _, Result};
use std::{fs, path::Path};

pub(super) const FILE: &str = ".config/tolerated-skips";

pub(super) fn read(root: &Path) -> Result<Vec<String>> {
    Ok(parse(&fs::read_to_string(root.join(FILE)).context(FILE)?))
}

fn parse(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_no_needs() {
        assert_eq!(
            parse("# none\n\nroot  # why\nkernel 5.15\n"),
            ["root", "kernel 5.15"]
        );
    }
}
