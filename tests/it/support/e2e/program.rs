//! Our processes in Pods, as this host sees them: they can be killed without a word to anybody.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{World, install::NAMESPACE, is_ready, name};

/// Processes of a Pod that run our program.
fn processes(uid: &str) -> Vec<i32> {
    let written = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        // Gone meanwhile.
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        written.iter().any(|pod| groups.contains(pod)) && read("cmdline").starts_with(b"/usr/local/bin/terrapool\0")
    };
    pids.filter(is_one).collect()
}

impl World {
    /// The operators' Pods.
    pub async fn operators(&self) -> Vec<Value> {
        let path =
            format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Fname%3Dterrapool-operator");
        self.read(&path).await["items"].as_array().cloned().unwrap_or_default()
    }

    async fn lease(&self) -> Value {
        self.read(&format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/terrapool-operator")).await
    }

    /// How long a leader is waited for that says nothing any more.
    pub async fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease().await["spec"]["leaseDurationSeconds"].as_u64().unwrap())
    }

    /// Who leads, by the Lease; maybe somebody who is gone.
    pub async fn leader(&self) -> String {
        self.lease().await["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    /// Who leads, once that is somebody who is there.
    pub async fn leader_is_there(&self) -> String {
        self.until("an operator leads that is there", async || {
            let (leader, pods) = (self.leader().await, self.operators().await);
            let there = pods.iter().any(|pod| name(pod) == leader && pod["metadata"]["deletionTimestamp"].is_null());
            if there { Ok(leader) } else { Err(leader) }
        })
        .await
    }

    /// Waits until somebody else leads.
    pub async fn leader_is_another_than(&self, former: &str) {
        self.until("another operator leads", async || {
            let leader = self.leader().await;
            if leader.is_empty() || leader == former { Err(leader) } else { Ok(()) }
        })
        .await;
    }

    /// `kill -9` of the operator that leads.
    pub async fn kill_operator(&self) {
        let killed = self
            .until("an operator to kill", async || {
                let pods = self.operators().await;
                let leader = self.leader().await;
                let pid =
                    pods.iter().find(|pod| name(pod) == leader).map(|pod| pod["metadata"]["uid"].as_str().unwrap());
                match pid.map(processes).as_deref() {
                    Some([pid]) => Ok(*pid),
                    other => Err(format!("leader `{leader}`, its processes {other:?}")),
                }
            })
            .await;
        // A crash in this very moment is one as well.
        let _gone = kill_process(Pid::from_raw(killed).unwrap(), Signal::KILL);
    }

    /// `kill -9` of the agent in a Pod, as when it took too much memory. Whatever else runs there goes on.
    pub fn kill_agent(&self, pod: &Value) {
        let agents = processes(pod["metadata"]["uid"].as_str().unwrap());
        let [agent] = agents[..] else { panic!("{} has the agents {agents:?}", name(pod)) };
        kill_process(Pid::from_raw(agent).unwrap(), Signal::KILL).unwrap();
    }

    /// Waits until there are so many operators, all of them ready.
    pub async fn operators_become(&self, number: usize) -> Vec<Value> {
        self.until(&format!("{number} operators are ready"), async || {
            let pods = self.operators().await;
            if pods.len() == number && pods.iter().all(is_ready) { Ok(pods) } else { Err(pods) }
        })
        .await
    }
}

/// More operators than one, until the value is dropped.
pub struct Operators<'a>(&'a World);

impl<'a> Operators<'a> {
    pub async fn scale(world: &'a World, number: usize) -> Self {
        let operators = Self(world);
        operators.set(number);
        world.operators_become(number).await;
        operators
    }

    fn set(&self, number: usize) {
        let number = format!("--replicas={number}");
        drop(
            self.0.kubectl().output(&["scale", "deployment/terrapool-operator", "--namespace", NAMESPACE, &number], ""),
        );
    }
}

impl Drop for Operators<'_> {
    fn drop(&mut self) {
        self.set(1);
    }
}
