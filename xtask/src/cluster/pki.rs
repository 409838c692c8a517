//! The cluster's certificate authority, the API server's certificate, the key of service accounts, and everybody's token.

use super::layout::{API_SERVICE, CONTROL, Layout};
use crate::run::quietly;
use anyhow::{Context as _, Result};
use std::{fmt::Write as _, fs, path::Path, process::Command};

/// Files in the cluster's folder.
pub(super) const AUTHORITY: &str = "pki/ca.crt";
pub(super) const CERTIFICATE: &str = "pki/apiserver.crt";
pub(super) const KEY: &str = "pki/apiserver.key";
pub(super) const ACCOUNTS: &str = "pki/accounts.key";
pub(super) const TOKENS: &str = "pki/tokens.csv";

/// Who speaks to the API server, and the group that RBAC's own roles know it by.
fn users(layout: &Layout) -> Vec<(String, &'static str)> {
    let mut users: Vec<_> = [
        ("admin", "system:masters"),
        ("system:kube-controller-manager", ""),
        ("system:kube-scheduler", ""),
        ("system:kube-proxy", ""),
        // The plain process has none of the roles that its usual manifest brings.
        ("coredns", "system:masters"),
        // May do what `flannel.rs` grants it, where that CNI was asked for.
        ("flannel", ""),
    ]
    .map(|(user, group)| (user.to_owned(), group))
    .into();
    users.extend(
        layout
            .nodes()
            .map(|node| (format!("system:node:{}", node.name()), "system:nodes")),
    );
    users
}

/// Makes keys, certificates, tokens, and a kubeconfig for each user: `kubeconfig/USER`, without `system:`.
pub(super) fn make(layout: &Layout) -> Result<()> {
    for folder in ["pki", "kubeconfig"] {
        let folder = layout.file(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let authority_key = layout.file("pki/ca.key");
    let authority = layout.file(AUTHORITY);
    // EC keys take no time to make; both ends know them.
    openssl(|command| {
        command
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650"
                    .split(' '),
            )
            .args(["-subj", "/CN=cluster"])
            .args(["-addext", "keyUsage=critical,keyCertSign,digitalSignature"])
            .arg("-keyout")
            .arg(&authority_key)
            .arg("-out")
            .arg(&authority)
    })?;
    openssl(|command| {
        command
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650"
                    .split(' '),
            )
            .args(["-subj", "/CN=kube-apiserver"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", "extendedKeyUsage=serverAuth"])
            .args(["-addext", &names()])
            .arg("-CA")
            .arg(&authority)
            .arg("-CAkey")
            .arg(&authority_key)
            .arg("-keyout")
            .arg(layout.file(KEY))
            .arg("-out")
            .arg(layout.file(CERTIFICATE))
    })?;
    openssl(|command| {
        command
            .args(["genrsa", "-out"])
            .arg(layout.file(ACCOUNTS))
            .arg("2048")
    })?;
    let mut tokens = String::new();
    for (user, group) in users(layout) {
        let token = token()?;
        _ = writeln!(tokens, "{token},{user},{user},\"{group}\"");
        let file = kubeconfig(layout, &user);
        fs::write(&file, kubeconfig_text(&authority, &token))
            .with_context(|| file.display().to_string())?;
    }
    let file = layout.file(TOKENS);
    fs::write(&file, tokens).with_context(|| file.display().to_string())
}

pub(super) fn kubeconfig(layout: &Layout, user: &str) -> std::path::PathBuf {
    let name = user.rsplit(':').next().unwrap_or(user);
    layout.file("kubeconfig").join(name)
}

fn openssl(arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    quietly(arguments(&mut Command::new("openssl"))).map(drop)
}

/// Everything that a client may call the server by.
fn names() -> String {
    let services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut names =
        "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc.cluster.local".to_owned();
    for service in services {
        _ = write!(names, ",DNS:{service}");
    }
    for address in [API_SERVICE, CONTROL.v4, CONTROL.v6, "127.0.0.1"] {
        _ = write!(names, ",IP:{address}");
    }
    names
}

fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    let made = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    anyhow::ensure!(made == bytes.len(), "getrandom gave {made} bytes");
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    }))
}

fn kubeconfig_text(authority: &Path, token: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster: {{server: \"https://{}\", certificate-authority: \"{}\"}}
users:
- name: user
  user: {{token: {token}}}
contexts:
- name: cluster
  context: {{cluster: cluster, user: user}}
current-context: cluster
",
        CONTROL.v4,
        authority.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_may_call_the_server_by_its_service() {
        let names = names();
        for name in [
            "DNS:kubernetes.default.svc,",
            "IP:10.96.0.1,",
            "IP:fd00:89::2,",
        ] {
            assert!(names.contains(name), "{names}");
        }
    }

    #[test]
    fn tokens_differ() -> Result<()> {
        let (one, other) = (token()?, token()?);
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
        Ok(())
    }

    #[test]
    fn each_node_is_a_user_of_the_node_authorizer() {
        let users = users(&Layout::new(Path::new("/x"), 2));
        assert!(users.contains(&("system:node:node2".into(), "system:nodes")));
        assert_eq!(
            kubeconfig(&Layout::new(Path::new("/x"), 2), "system:node:node2"),
            Path::new("/x/kubeconfig/node2")
        );
    }
}
