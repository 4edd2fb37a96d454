//! What happens to a new connection before HTTP: TLS, plain, or whichever of the two the client begins with.
//! `up` needs the last one: the terraform CLI prints `https://` addresses for a host that it talks plain HTTP to.

use std::{io, time::Duration};

use axum::{Extension, middleware::AddExtension};
use axum_server::{accept::Accept, tls_rustls::RustlsConfig};
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;
use tower::Layer;

use super::auth::Scheme;

/// A client must have begun, and finished its handshake, by then.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// First byte of a TLS handshake (RFC 8446, section 5.1); no HTTP request begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a listener speaks.
#[derive(Clone)]
pub enum Speaks {
    Plain,
    Tls(RustlsConfig),
    /// What the client begins with.
    Either(RustlsConfig),
}

impl Speaks {
    async fn tls_for(self, stream: &TcpStream) -> io::Result<Option<RustlsConfig>> {
        Ok(match self {
            Self::Plain => None,
            Self::Tls(config) => Some(config),
            Self::Either(config) => {
                let mut first = [0];
                stream.peek(&mut first).await?;
                (first[0] == TLS_HANDSHAKE).then_some(config)
            }
        })
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Speaks {
    type Stream = Either<TcpStream, TlsStream<TcpStream>>;
    type Service = AddExtension<S, Scheme>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let speaks = self.clone();
        let accepted = async move {
            // Answers are small and waited for.
            stream.set_nodelay(true)?;
            Ok(match speaks.tls_for(&stream).await? {
                None => (Either::Left(stream), Extension(Scheme("http")).layer(service)),
                Some(config) => {
                    let stream = TlsAcceptor::from(config.get_inner()).accept(stream).await?;
                    (Either::Right(stream), Extension(Scheme("https")).layer(service))
                }
            })
        };
        Box::pin(
            async move { tokio::time::timeout(HANDSHAKE_LIMIT, accepted).await.map_err(|_| io::ErrorKind::TimedOut)? },
        )
    }
}
