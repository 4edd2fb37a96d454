//! An admission webhook of a schedule's own: over TLS on loopback, where the API server runs too, for the new Pods of
//! one namespace. It denies them all.

use std::time::Duration;

use axum::{Json, Router, http::Method, routing::post};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use terrapool::server::tls::own_ca;
use tokio::task::JoinHandle;

use super::{
    cluster::{JSON, Kind, Space, code},
    stage::Stage,
};
use crate::support::poll::eventually;

/// What it says.
pub const WORDS: &str = "no agents on Sundays";

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// In force until [`Stage::allow`].
pub struct Webhook {
    server: JoinHandle<()>,
    _certificates: TempDir,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stage {
    /// Every new Pod is denied with this status.
    pub(super) async fn deny(&self, code: u16) -> Result<(), kube::Error> {
        let certificates = tempfile::tempdir().unwrap();
        let ca = own_ca(certificates.path(), &[]).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let router =
            Router::new().route("/", post(move |Json(review): Json<Value>| async move { answer(&review, code) }));
        let server = axum_server::from_tcp_rustls(listener, ca.server.load().await.unwrap()).unwrap();
        let server = tokio::spawn(async move { server.serve(router.into_make_service()).await.unwrap() });
        *self.webhook.lock().unwrap() = Some(Webhook { server, _certificates: certificates });
        let bundle = STANDARD.encode(std::fs::read(&ca.ca).unwrap());
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": self.space.name},
            "webhooks": [{
                "name": "pods.deny.test",
                "clientConfig": {"url": format!("https://{address}/"), "caBundle": bundle},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.space.name}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 5,
            }],
        });
        self.space.cluster.call(Method::POST, CONFIGURATIONS, JSON, &configuration).await?;
        eventually("the webhook is in force", Duration::from_secs(20), async || denied(&self.space).await).await;
        Ok(())
    }

    /// The webhook goes, if there is one.
    pub(super) async fn allow(&self) {
        let webhook = self.webhook.lock().unwrap().take();
        if webhook.is_some() {
            let path = format!("{CONFIGURATIONS}/{}", self.space.name);
            self.space.cluster.call(Method::DELETE, &path, JSON, &Value::Null).await.unwrap();
            eventually("the webhook is gone", Duration::from_secs(20), async || match denied(&self.space).await {
                Ok(()) => Err("a Pod is still denied".to_owned()),
                Err(_) => Ok(()),
            })
            .await;
        }
    }
}

fn answer(review: &Value, code: u16) -> Json<Value> {
    Json(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": review["request"]["uid"], "allowed": false, "status": {"code": code, "message": WORDS}},
    }))
}

/// Whether a Pod would be denied now; else what happens to it.
async fn denied(space: &Space) -> Result<(), String> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "c", "image": "registry.test/image:1"}]}});
    let path = format!("{}?dryRun=All", space.path(Kind::Pod, ""));
    match space.cluster.call(Method::POST, &path, JSON, &pod).await {
        Err(error) if error.to_string().contains(WORDS) => Ok(()),
        Err(error) => Err(format!("{} {error}", code(&error))),
        Ok(_) => Err("a Pod is let in".to_owned()),
    }
}
