//! From `POST runs` until an idle agent has the job.

use std::time::{Duration, Instant};

use crate::support::{
    floor::Database,
    report::{self, Samples},
    rig::Rig,
};

const ROUNDS: usize = 60;

/// Not counted.
const WARM_UP: usize = 5;

pub async fn measure(version: &str) -> anyhow::Result<()> {
    report::heading(
        "claim",
        "POST runs until the held claim of an idle agent is answered (SQLite, every commit on the disk; the agent speaks the \
         protocol and does nothing; the floor: two transactions of one row in a plain SQLite database, as durable)",
    );
    let rig = Rig::start().await?;
    let workspace = rig.workspace("output \"x\" {\n  value = 1\n}\n", version).await?;
    let agent = rig.idle_agent().await?;
    let mut database = Database::open(rig.path()).await?;
    let [mut claimed, mut posted, mut floor] = [(); 3].map(|()| Samples::default());
    for round in 0..WARM_UP + ROUNDS {
        let claim = {
            let agent = agent.clone();
            tokio::spawn(async move {
                let spec = agent.claim(format!("claim-{round}")).await?;
                Ok::<_, anyhow::Error>((Instant::now(), spec))
            })
        };
        // Until the claim is held.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let start = Instant::now();
        let run = rig.plan(&workspace).await?;
        let answered = start.elapsed();
        let (at, spec) = claim.await??;
        agent.finish(&spec, 0, false).await?;
        rig.ended(&run).await?;

        let plain = Instant::now();
        for _ in 0..2 {
            database.commit(b"a run, or a job").await?;
        }
        if round >= WARM_UP {
            claimed.push(milliseconds(at.duration_since(start)));
            posted.push(milliseconds(answered));
            floor.push(milliseconds(plain.elapsed()));
        }
    }
    report::samples("floor: two durable transactions", &floor, "ms");
    report::beside("POST runs → its own answer", &posted, "ms", &floor);
    report::beside("POST runs → claimed", &claimed, "ms", &floor);
    report::row(
        "  target: p50 ≤ 5 ms, p99 ≤ 25 ms",
        &format!("p50 {:.2} ms, p99 {:.2} ms", claimed.median(), claimed.p99()),
    );
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
