//! Images of the cluster's own: no registry is asked for any.

use super::programs::{KUBERNETES, Programs};
use crate::{image, run::quietly};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Holds a pod's namespaces until it is told to end.
const PAUSE: &str = "#include <signal.h>
#include <unistd.h>
static void end(int signal) { _exit(0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }
";

/// An image, and the archive that holds it.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) archive: PathBuf,
}

#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) pause: Image,
    /// `agnhost`: servers for pods.
    pub(super) server: Image,
}

/// Makes those that the cache lacks.
pub(super) fn provide(programs: &Programs) -> Result<Images> {
    let folder = programs.images();
    let image = |name: &str| Image {
        name: format!("localhost/{name}:{}", KUBERNETES.version),
        archive: folder.join(format!("{name}.tar")),
    };
    let images = Images {
        pause: image("pause"),
        server: image("agnhost"),
    };
    if !images.pause.archive.is_file() {
        make(&images.pause, "pause", |program| {
            let source = program.with_extension("c");
            fs::write(&source, PAUSE)?;
            let mut cc = Command::new("cc");
            cc.args(["-static", "-Os", "-s", "-o"]);
            quietly(cc.arg(program).arg(source)).map(drop)
        })?;
    }
    if !images.server.archive.is_file() {
        make(&images.server, "agnhost", |program| {
            fs::copy(programs.file("agnhost")?, program)?;
            Ok(())
        })?;
    }
    Ok(images)
}

/// An image with one program, which `place` puts where it is told.
fn make(image: &Image, program: &str, place: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    eprintln!("cluster: making the image {}", image.name);
    let context = image.archive.with_extension("context");
    fs::create_dir_all(&context).with_context(|| context.display().to_string())?;
    place(&context.join(program)).with_context(|| program.to_owned())?;
    let containerfile = context.join("Containerfile");
    let text = format!("FROM scratch\nCOPY {program} /{program}\nENTRYPOINT [\"/{program}\"]\n");
    fs::write(&containerfile, text).with_context(|| containerfile.display().to_string())?;
    image::archive(&image.name, &containerfile, &context, &image.archive)?;
    fs::remove_dir_all(&context).with_context(|| context.display().to_string())
}
