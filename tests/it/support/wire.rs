//! A wire between a client and a server, that a test can cut, and at which it can stop requests. It carries bytes and
//! knows of HTTP only that a request begins with its head.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Open,
    /// As a network that loses everything: nobody hears that anybody is gone.
    Silent,
    /// As a program that is not there.
    Refused,
}

#[derive(Clone)]
pub struct Wire {
    line: watch::Sender<Line>,
    /// A part of the heads that wait.
    held: watch::Sender<Option<&'static str>>,
    /// How many wait.
    waiting: Arc<AtomicUsize>,
}

impl Wire {
    fn new() -> Self {
        Self { line: watch::Sender::new(Line::Open), held: watch::Sender::new(None), waiting: Arc::default() }
    }

    /// A port of loopback that leads to `server`.
    pub async fn tcp(server: SocketAddr) -> (Self, SocketAddr) {
        let (wire, listener) = (Self::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let this = wire.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let this = this.clone();
                tokio::spawn(async move { this.carry(client, || TcpStream::connect(server)).await });
            }
        });
        (wire, address)
    }

    /// A socket at `path` that leads to the one at `server`.
    pub fn unix(path: &Path, server: PathBuf) -> Self {
        let (wire, listener) = (Self::new(), UnixListener::bind(path).unwrap());
        let this = wire.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (this, server) = (this.clone(), server.clone());
                tokio::spawn(async move { this.carry(client, || UnixStream::connect(server)).await });
            }
        });
        wire
    }

    /// Connections of now end with the line as it is now; what comes later meets the new one.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Requests whose head has `part` in its first line wait from now on; `None`: they go on.
    pub fn hold(&self, part: Option<&'static str>) {
        self.held.send_replace(part);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    async fn carry<C, S, F>(self, client: C, connect: impl FnOnce() -> F)
    where
        C: AsyncRead + AsyncWrite,
        S: AsyncRead + AsyncWrite,
        F: Future<Output = std::io::Result<S>>,
    {
        let mut line = self.line.subscribe();
        let is_open = *line.borrow_and_update() == Line::Open;
        if is_open {
            // An error shows the client that nobody is there, as it should.
            let Ok(server) = connect().await else { return };
            let (client_reads, client_writes) = tokio::io::split(client);
            let (server_reads, server_writes) = tokio::io::split(server);
            tokio::select! {
                () = self.requests(client_reads, server_writes) => {}
                () = answers(server_reads, client_writes) => {}
                // Both ends stay open while nothing is carried.
                _ = line.changed() => self.end(line).await,
            }
        } else {
            self.end(line).await;
        }
    }

    async fn end(&self, mut line: watch::Receiver<Line>) {
        drop(line.wait_for(|line| *line != Line::Silent).await);
    }

    async fn requests(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            if let Some(head) = head(&bytes[..count]) {
                let mut held = self.held.subscribe();
                if held.borrow().is_some_and(|part| head.contains(part)) {
                    let _waits = Waits::new(self);
                    drop(held.wait_for(|part| part.is_none_or(|part| !head.contains(part))).await);
                }
            }
            if to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }
}

async fn answers(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    drop(tokio::io::copy(&mut from, &mut to).await);
}

/// The first line, when these bytes are the start of a request.
fn head(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.ends_with(" HTTP/1.1").then(|| line.to_owned())
}

struct Waits<'a>(&'a Wire);

impl<'a> Waits<'a> {
    fn new(wire: &'a Wire) -> Self {
        wire.waiting.fetch_add(1, Ordering::SeqCst);
        Self(wire)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
