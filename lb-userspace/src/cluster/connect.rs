//! Who we are to the API server, and where it is.

use std::path::Path;

use kube::{
    Client, Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Why there is no client. The server was not asked yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{file}: {error}")]
    File {
        file: String,
        error: KubeconfigError,
    },
    #[error(
        "neither KUBECONFIG nor a service account: run as a pod, or name a file in kubernetes.kubeconfig ({0})"
    )]
    Nowhere(InferConfigError),
    #[error("a client for the API server: {0}")]
    Client(kube::Error),
}

/// A client by a kubeconfig file; by none, that of the environment or of the pod's service account.
///
/// # Errors
/// There is none, or it says nothing useful.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(path) => {
            let failed = |error| ConnectError::File {
                file: path.display().to_string(),
                error,
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(failed)?
        }
        None => Config::infer().await.map_err(ConnectError::Nowhere)?,
    };
    Client::try_from(config).map_err(ConnectError::Client)
}
