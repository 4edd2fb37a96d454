//! What an agent takes of its host: waiting, with runs, and with a run that talks.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::support::{
    report::{self, Samples},
    rig::Rig,
    usage::{self, Memory},
};

const ROUNDS: usize = 5;

/// Runs at a time.
const JOBS: usize = 8;

/// What a run writes in a second, in bytes, by pieces of a tenth.
const TALK: usize = 1_000_000;

/// How long the run that talks is watched, in seconds.
const WATCHED: u64 = 10;

const CONFIGURATION: &str = "output \"x\" {\n  value = 1\n}\n";

/// An engine that plans until the file `end` is there, and talks meanwhile as `talk` says.
fn engine(dir: &Path, version: &str, talk: &str) -> anyhow::Result<String> {
    fs::create_dir_all(dir)?;
    let end = dir.join("end");
    drop(fs::remove_file(&end));
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\nversion) echo \"Terraform v{version}\" ;;\nplan)\n    echo begun\n    until [ -e {} ]; do\n        \
         {talk}\n        sleep 0.1\n    done\n    for argument; do case \"$argument\" in -out=*) echo plan >\"${{argument#-out=}}\" ;; esac; done\n    \
         exit 2\n    ;;\nshow) echo '{{\"format_version\":\"1.2\"}}' ;;\nesac\n",
        end.display()
    );
    let program = dir.join("terraform");
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(dir.display().to_string())
}

/// Processes that this one started, and theirs.
fn descendants(id: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}

fn is_runner(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("runner"))
}

pub async fn idle(_version: &str) -> anyhow::Result<()> {
    report::heading(
        "agent-idle",
        "an agent of the Docker executor that waits for a job (smaps_rollup 5 s after its start; CPU over 30 s; another process each \
         time; the control plane runs beside it from the same file)",
    );
    let [mut resident, mut shared, mut anonymous, mut cpu] = [(); 4].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        let mut rig = Rig::start().await?;
        rig.start_agent("docker", &[]).await?;
        let id = rig.agent()?.id();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let memory = Memory::of(id);
        resident.push(memory.resident);
        shared.push(memory.proportional);
        anonymous.push(memory.anonymous);
        let before = usage::cpu(id);
        tokio::time::sleep(Duration::from_secs(30)).await;
        cpu.push((usage::cpu(id) - before) / 30.0 * 100.0);
    }
    report::samples("RSS (target ≤ 8 MB)", &resident, "MiB");
    report::samples("  PSS", &shared, "MiB");
    report::samples("  not backed by the program's file", &anonymous, "MiB");
    report::samples("CPU (target ≤ 0.05 %)", &cpu, "% of a core");
    Ok(())
}

pub async fn jobs(version: &str) -> anyhow::Result<()> {
    report::heading(
        "agent-jobs",
        "what each of eight runs at a time adds to the agent's memory, and the runner that each has (process executor; engines \
         that wait; the engine's own memory is not counted)",
    );
    let [mut agent, mut runner] = [(); 2].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        let mut rig = Rig::start().await?;
        let dir = rig.path().join("engines");
        let engines = engine(&dir, version, ":")?;
        rig.start_agent("process", &["--engine-dir", &engines, "--concurrency", &JOBS.to_string()]).await?;
        let id = rig.agent()?.id();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = Memory::of(id).resident;
        let mut runs = Vec::new();
        for _ in 0..JOBS {
            let workspace = rig.workspace(CONFIGURATION, version).await?;
            runs.push(rig.plan(&workspace).await?);
        }
        for run in &runs {
            rig.log_has(run, "begun").await?;
        }
        // As while an engine works: what only the starts have used is given back.
        tokio::time::sleep(Duration::from_secs(5)).await;
        agent.push((Memory::of(id).resident - before) / JOBS as f64);
        let runners: Vec<f64> =
            descendants(id).into_iter().filter(|id| is_runner(*id)).map(|id| Memory::of(id).resident).collect();
        ensure!(runners.len() == JOBS, "{} runners are seen", runners.len());
        runner.push(runners.iter().sum::<f64>() / JOBS as f64);
        fs::write(dir.join("end"), "")?;
        for run in &runs {
            rig.ended(run).await?;
        }
    }
    report::samples("RSS of the agent, more for each job (target ≤ 3 MB)", &agent, "MiB");
    report::samples("RSS of a job's runner", &runner, "MiB");
    Ok(())
}

pub async fn talk(version: &str) -> anyhow::Result<()> {
    report::heading(
        "agent-log",
        "CPU of the agent while a run writes a megabyte in a second, in lines of 100 bytes, for ten seconds (process executor)",
    );
    let [mut agent, mut server, mut behind] = [(); 3].map(|()| Samples::default());
    for _ in 0..ROUNDS {
        let mut rig = Rig::start().await?;
        let dir = rig.path().join("engines");
        fs::create_dir(&dir)?;
        let piece = dir.join("piece");
        fs::write(
            &piece,
            format!("{:<99}\n", "module.network.aws_subnet.private[7]: Still creating...").repeat(TALK / 1000),
        )?;
        let engines = engine(&dir, version, &format!("cat {}", piece.display()))?;
        rig.start_agent("process", &["--engine-dir", &engines]).await?;
        let workspace = rig.workspace(CONFIGURATION, version).await?;
        let run = rig.plan(&workspace).await?;
        rig.log_has(&run, "begun").await?;
        let ids = [rig.agent()?.id(), rig.server.id()];
        let before = ids.map(usage::cpu);
        tokio::time::sleep(Duration::from_secs(WATCHED)).await;
        let after = ids.map(usage::cpu);
        for (samples, at) in [(&mut agent, 0), (&mut server, 1)] {
            samples.push((after[at] - before[at]) / WATCHED as f64 * 100.0);
        }
        fs::write(dir.join("end"), "")?;
        let start = Instant::now();
        rig.ended(&run).await?;
        behind.push(start.elapsed().as_secs_f64() * 1e3);
    }
    report::samples("CPU of the agent (target ≤ 2 %)", &agent, "% of a core");
    report::samples("CPU of the server", &server, "% of a core");
    report::samples("last word → the run has ended", &behind, "ms");
    Ok(())
}
