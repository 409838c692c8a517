//! The first agent that needs the nodes' common keys makes them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::sleep};

use super::keys::{Keys, NAME};
use crate::random;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(5);

/// Makes the Secret in a namespace once it is `wanted`, unless somebody else does. Ends when it is there, or nobody can want
/// it any more.
pub async fn keep(client: Client, namespace: String, mut wanted: watch::Receiver<bool>) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let mut told = None;
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let Err(why) = make(&api).await else { return };
        if told.as_ref() != Some(&why) {
            tracing::warn!("no keys for tunnels: {why}; trying again every {PAUSE:?}");
            told = Some(why);
        }
        sleep(PAUSE).await;
    }
}

/// That it is there already is as good.
async fn make(api: &Api<Secret>) -> Result<(), String> {
    let failed = |verb: &str, error: &kube::Error| match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "no permission to {verb} secret {NAME}: apply the Role of deploy/millrace.yaml ({})",
            status.message
        ),
        other => other.to_string(),
    };
    let there = api.get_opt(NAME).await;
    if there.map_err(|error| failed("get", &error))?.is_some() {
        return Ok(());
    }
    let random = |error: std::io::Error| format!("a random key: {error}");
    let keys = Keys::new(
        random::key().map_err(random)?,
        random::key().map_err(random)?,
    );
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        data: Some(
            keys.data()
                .into_iter()
                .map(|(name, value)| (name, ByteString(value)))
                .collect(),
        ),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!("keys for tunnels made: secret {NAME}");
            Ok(())
        }
        // Another agent was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(failed("create", &error)),
    }
}

/// Those of the manifest.
fn labels() -> BTreeMap<String, String> {
    [
        ("name", "millrace"),
        ("component", "agent"),
        ("part-of", "millrace"),
    ]
    .map(|(name, value)| (format!("app.kubernetes.io/{name}"), value.to_owned()))
    .into()
}
