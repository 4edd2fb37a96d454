//! Whether a goal is reached, and the meddling of [`Tamper`].

use std::sync::Arc;

use axum::http::Method;
use serde_json::{Value, json};
use terrapool::{crd::names::POOL_LABEL, server::store};

use super::{
    cluster::Kind,
    oracles::condition,
    scenario::{Goal, Tamper, owned_by},
    stage::{Stage, is_ready},
};

type Missing = String;

impl Stage {
    /// Whether the goal is reached; else what is missing.
    pub(super) async fn reached(&self, goal: &Goal) -> Result<(), Missing> {
        let holds = |holds: bool, seen: &dyn std::fmt::Debug| if holds { Ok(()) } else { Err(format!("{seen:?}")) };
        let is_so = |object: &Value, holds: bool| if holds { Ok(()) } else { Err(object["status"].to_string()) };
        match goal {
            Goal::Ready(kind, name) => {
                let object = self.mirror.get(*kind, name);
                is_so(&object, is_ready(&object))
            }
            Goal::Is(kind, name, type_, status, reason) => {
                let object = self.mirror.get(*kind, name);
                let found = condition(&object, type_).is_some_and(|c| c["status"] == *status && c["reason"] == *reason);
                is_so(&object, found)
            }
            Goal::Says(name, type_, words) => {
                let object = self.mirror.get(Kind::AgentPool, name);
                let says = |c: &Value| c["message"].as_str().is_some_and(|message| message.contains(words));
                is_so(&object, condition(&object, type_).is_some_and(says))
            }
            Goal::Gone(kind, name) => {
                let object = self.mirror.get(*kind, name);
                is_so(&object, object.is_null())
            }
            Goal::NotReady(name) => {
                let object = self.mirror.get(Kind::AgentPool, name);
                let seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
                let found = condition(&object, "Ready").is_some_and(|c| c["status"] == "False" && c["reason"] != "");
                is_so(&object, seen && found)
            }
            Goal::Agents(count) => self.agents_run(*count).await,
            Goal::Labelled(key, value) => {
                let pods = self.mirror.all(Kind::Pod);
                let all = pods.iter().all(|pod| pod["metadata"]["labels"][key] == *value);
                holds(all && !pods.is_empty(), &pods.iter().map(|pod| pod["metadata"].to_string()).collect::<Vec<_>>())
            }
            Goal::Busy(count) => holds(self.room.busy() == *count, &self.room.busy()),
            Goal::Done(count) => holds(self.room.done() == *count, &self.room.done()),
            Goal::Linked(workspace, pool) => self.linked(workspace, pool).await,
            Goal::OtherToken(name) => self.other_token(name).await,
            Goal::Named(pool, wanted) => {
                let wanted = wanted.replace("$NS", &self.space.name);
                let name = self.remote(pool).await.map(|(_, name)| name);
                holds(name.as_ref() == Some(&wanted), &name)
            }
            Goal::Field(kind, name, path, value) => {
                let objects = match *name {
                    "*" => self.mirror.all(*kind),
                    name => vec![self.mirror.get(*kind, name)],
                };
                let found = objects.iter().any(|object| object.pointer(path) == Some(value));
                if found { Ok(()) } else { Err(objects.iter().map(|object| object["status"].to_string()).collect()) }
            }
        }
    }

    async fn agents_run(&self, count: usize) -> Result<(), Missing> {
        let pods = self.mirror.all(Kind::Pod);
        let running =
            |pod: &&Arc<Value>| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        let names: Vec<&str> = pods.iter().filter(running).filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        let phases = || -> Vec<String> {
            pods.iter().map(|pod| format!("{} {}", pod["metadata"]["name"], pod["status"]["phase"])).collect()
        };
        if pods.len() != count || names.len() != count {
            return Err(format!(
                "{:?}; {}",
                phases(),
                self.mirror.all(Kind::AgentPool).iter().map(|p| p["status"].to_string()).collect::<String>()
            ));
        }
        let mut connection = self.plane.app.app.store.read().await.unwrap();
        let agents = store::agents::all(&mut connection).await.unwrap();
        let there =
            names.iter().filter(|name| agents.iter().any(|agent| agent.name == **name && !agent.cordoned)).count();
        if there == count { Ok(()) } else { Err(format!("{there} agents of the Pods {:?}", phases())) }
    }

    /// Id and name of an AgentPool's pool in the control plane.
    async fn remote(&self, pool: &str) -> Option<(String, String)> {
        let object = self.mirror.get(Kind::AgentPool, pool);
        let uid = object["metadata"]["uid"].as_str()?.to_owned();
        let app = &self.plane.app;
        let mut connection = app.app.store.read().await.unwrap();
        let pools = store::pools::of_account(&mut connection, &app.account).await.unwrap();
        let found = pools.into_iter().find(|found| found.external_id.as_ref() == Some(&uid))?;
        Some((found.id.to_string(), found.name))
    }

    async fn linked(&self, workspace: &str, pool: &str) -> Result<(), Missing> {
        let (workspace, _) = self.workspaces.lock().unwrap()[workspace].clone();
        let linked = self.plane.app.reread_workspace(&workspace).await.pool_id.map(|id| id.to_string());
        let wanted = if pool.is_empty() { None } else { self.remote(pool).await.map(|(id, _)| id) };
        let reached = linked == wanted && (pool.is_empty() || wanted.is_some());
        if reached { Ok(()) } else { Err(format!("linked to {linked:?}, wanted {wanted:?}")) }
    }

    async fn other_token(&self, pool: &str) -> Result<(), Missing> {
        let secrets = self.space.list(Kind::Secret).await;
        let secret = secrets.iter().find(|secret| secret["metadata"]["labels"][POOL_LABEL] == pool);
        let token = secret.map(|secret| secret["data"]["token"].clone()).unwrap_or_default();
        let mut tokens = self.tokens.lock().unwrap();
        if token.is_null() || tokens.get(pool) == Some(&token) {
            return Err("the Secret has no other token".to_owned());
        }
        tokens.insert(pool.to_owned(), token);
        Ok(())
    }

    pub(super) async fn tamper(&self, tamper: &Tamper) {
        match tamper {
            Tamper::WipeStatus(kind, name) => {
                self.space.merge(*kind, name, "/status", &json!({"status": null})).await.unwrap();
            }
            Tamper::StripLabels(kind) => {
                for object in self.owned(*kind).await {
                    let labels = object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
                    let none: serde_json::Map<String, Value> =
                        labels.into_iter().map(|(key, _)| (key, Value::Null)).collect();
                    self.merge_into(*kind, &object, &json!({"metadata": {"labels": none}})).await;
                }
            }
            Tamper::DeleteAll(kind) => {
                for object in self.owned(*kind).await {
                    self.space.delete(*kind, object["metadata"]["name"].as_str().unwrap(), &Value::Null).await;
                }
            }
            Tamper::EmptySecret | Tamper::ForgeSecret => {
                let data = match tamper {
                    Tamper::EmptySecret => Value::Null,
                    _ => json!("Zm9yZ2Vk"),
                };
                for object in self.owned(Kind::Secret).await {
                    self.merge_into(Kind::Secret, &object, &json!({"data": {"token": data}})).await;
                }
            }
            Tamper::Edit(kind, patch) => {
                for object in self.owned(*kind).await.iter().take(1) {
                    self.merge_into(*kind, object, &owned_by(patch, &self.space.name)).await;
                }
            }
            Tamper::DeletePool(pool) => {
                let (id, _) = self.remote(pool).await.unwrap();
                self.administer(Method::DELETE, &format!("agent-pools/{id}"), &Value::Null).await;
            }
            Tamper::RenamePool(pool) => {
                let (id, _) = self.remote(pool).await.unwrap();
                let body = json!({"data": {"type": "agent-pools", "id": id, "attributes": {"name": format!("{}-by-hand", self.space.name)}}});
                self.administer(Method::PATCH, &format!("agent-pools/{id}"), &body).await;
            }
            Tamper::RevokeTokens(pool) => {
                let (id, _) = self.remote(pool).await.unwrap();
                let path = format!("/api/iacp/v3/agent-pools/{id}/access-tokens");
                let tokens = self.plane.app.get(&path).await.expect(200).json();
                for token in tokens["data"].as_array().unwrap() {
                    let id = token["id"].as_str().unwrap();
                    self.administer(Method::DELETE, &format!("access-tokens/{id}"), &Value::Null).await;
                }
            }
            Tamper::ForeignPool(name) => {
                let name = name.replace("$NS", &self.space.name);
                let body = json!({"data": {"type": "agent-pools", "attributes": {"name": name}}});
                self.administer(Method::POST, "agent-pools", &body).await;
            }
        }
    }

    async fn administer(&self, method: Method, path: &str, body: &Value) {
        let answer = self.plane.app.request(method, &format!("/api/iacp/v3/{path}"), body).await;
        assert!(answer.status.is_success(), "{path}: {:?}", answer.json());
    }

    /// Objects of the kind that an AgentPool owns.
    async fn owned(&self, kind: Kind) -> Vec<Value> {
        let mut objects = self.space.list(kind).await;
        objects.retain(|object| object["metadata"]["ownerReferences"][0]["kind"] == "AgentPool");
        objects
    }

    async fn merge_into(&self, kind: Kind, object: &Value, patch: &Value) {
        self.space.merge(kind, object["metadata"]["name"].as_str().unwrap(), "", patch).await.unwrap();
    }
}
