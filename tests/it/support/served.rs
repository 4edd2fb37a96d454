//! A [`TestApp`] that also listens, so that the real CLI and a simulated agent meet in it.

use terrapool::{
    server::{
        accept::Speaks,
        serve::{self, Listener},
    },
    shutdown::Shutdown,
};
use tokio::task::JoinHandle;

use super::{
    app::{ADMIN_TOKEN, TestApp},
    cli::Access,
};

pub struct Served {
    pub test: TestApp,
    pub access: Access,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), serve::Error>>,
}

impl Served {
    pub async fn new() -> Self {
        let test = TestApp::new().await;
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), Speaks::Plain).unwrap();
        let host = format!("localhost:{}", listener.address().port());
        let shutdown = Shutdown::new();
        let task = tokio::spawn({
            let (app, shutdown) = (test.app.clone(), shutdown.clone());
            async move { serve::serve(app, vec![listener], &shutdown).await }
        });
        Self { test, access: Access { host, token: ADMIN_TOKEN.to_owned(), ca: None }, shutdown, task }
    }

    pub async fn stop(self) {
        self.shutdown.drain.cancel();
        self.task.await.unwrap().unwrap();
    }
}
