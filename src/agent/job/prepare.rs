//! What a stage needs before it can start.

use super::{
    super::{
        Agent,
        executor::{self, Executor, Prepared},
        jobdir::{Archive, JobDir},
        record::Failure,
        remote::Remote,
    },
    ENGINE_BACK,
    trouble::Trouble,
};
use crate::{
    api::{
        agent::artifact,
        job::{JobSpec, Stage},
    },
    telemetry::Chain,
};

/// An empty job directory for a job whose stage has not started.
pub(super) async fn prepare_anew(agent: &Agent, spec: &JobSpec) -> Result<JobDir, Failure> {
    let made = JobDir::create(&agent.config.data, spec, agent.executor.placement(spec)).await;
    made.map_err(|error| Failure { reason: error.reason().to_owned(), message: Chain(&error).to_string() })
}

/// Fetches what the stage needs and has its image and engine at hand.
pub(super) async fn prepare(
    executor: &Executor,
    spec: &JobSpec,
    dir: &JobDir,
    remote: &Remote,
) -> Result<Prepared, Trouble> {
    let Remote { client, job, .. } = remote;
    // The image may take minutes: it comes first, beside the files.
    let files = async {
        let archive = dir.path().join("configuration.tar.gz");
        remote.call(|| client.fetch_configuration(job, &archive)).await?;
        dir.unpack_configuration(Archive::File(archive.clone())).await?;
        drop(tokio::fs::remove_file(&archive).await);
        if spec.stage == Stage::Apply {
            let bundle = dir.path().join("plan.tar.gz");
            remote.call(|| client.fetch_artifact(job, artifact::PLAN, &bundle)).await?;
            dir.unpack_plan(Archive::File(bundle.clone())).await?;
            drop(tokio::fs::remove_file(&bundle).await);
        }
        let state = remote.call(|| client.fetch_state(job)).await?;
        dir.put_state(state).await?;
        Ok::<_, Trouble>(())
    };
    let image = async { executor::patiently(ENGINE_BACK, || executor.prepare(spec)).await.map_err(Trouble::from) };
    let ((), prepared) = tokio::try_join!(files, image)?;
    Ok(prepared)
}
