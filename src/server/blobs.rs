//! Large bytes beside the database: configuration slugs, plan bundles, states, finished logs. A crate
//! decides where (`object_store`: a local directory now); writes are complete and durable or not there.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, local::LocalFileSystem, path::Path as Key,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not create the blob directory {path}")]
    Create { path: String, source: std::io::Error },
    #[error("could not open the blob store")]
    Open { source: object_store::Error },
    #[error("could not write blob {key}")]
    Write { key: String, source: object_store::Error },
    #[error("could not read blob {key}")]
    Read { key: String, source: object_store::Error },
    #[error("blob {key} is larger than {limit} bytes")]
    TooLarge { key: String, limit: u64 },
    #[error("the upload broke off")]
    Upload { source: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    /// The store's disk is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::StorageFull
            {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Where large bytes lie.
#[derive(Debug, Clone)]
pub struct Blobs(Arc<dyn ObjectStore>);

impl Blobs {
    /// In a directory of this host, made when missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn local(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|source| Error::Create { path: dir.display().to_string(), source })?;
        let store = LocalFileSystem::new_with_prefix(dir).map_err(|source| Error::Open { source })?;
        Ok(Self(Arc::new(store.with_fsync(true))))
    }

    /// # Errors
    /// When the store refuses; nothing is there then.
    pub async fn put(&self, key: &str, bytes: impl Into<PutPayload>) -> Result<(), Error> {
        self.0
            .put(&Key::from(key), bytes.into())
            .await
            .map_err(|source| Error::Write { key: key.to_owned(), source })?;
        Ok(())
    }

    /// Stores a stream of at most `limit` bytes; says how many there were. Nothing stays when it fails.
    ///
    /// # Errors
    /// When the stream breaks off, is too long, or the store refuses.
    pub async fn put_stream<S, E>(&self, key: &str, mut stream: S, limit: u64) -> Result<u64, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let write = |source| Error::Write { key: key.to_owned(), source };
        let upload = self.0.put_multipart(&Key::from(key)).await.map_err(write)?;
        let mut writer = WriteMultipart::new(upload);
        let mut total = 0;
        while let Some(chunk) = stream.next().await {
            let failure = match chunk {
                Err(source) => Error::Upload { source: source.into() },
                Ok(chunk) => {
                    total += chunk.len() as u64;
                    if total <= limit {
                        // at most a few parts wait to be written: a fast sender does not fill the memory
                        writer.wait_for_capacity(2).await.map_err(write)?;
                        writer.put(chunk);
                        continue;
                    }
                    Error::TooLarge { key: key.to_owned(), limit }
                }
            };
            if let Err(error) = writer.abort().await {
                tracing::warn!(%error, key, "could not clean up after a broken upload");
            }
            return Err(failure);
        }
        writer.finish().await.map_err(write)?;
        Ok(total)
    }

    /// The whole blob; for small ones.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub async fn get(&self, key: &str) -> Result<Bytes, Error> {
        let read = |source| Error::Read { key: key.to_owned(), source };
        self.0.get(&Key::from(key)).await.map_err(read)?.bytes().await.map_err(read)
    }

    /// `length` bytes from `start`; fewer at the end.
    ///
    /// # Errors
    /// When the blob is not there or cannot be read.
    pub async fn get_range(&self, key: &str, start: u64, length: u64) -> Result<Bytes, Error> {
        let read = |source| Error::Read { key: key.to_owned(), source };
        self.0.get_range(&Key::from(key), start..start + length).await.map_err(read)
    }

    /// The blob as a stream, with its length.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub async fn stream(&self, key: &str) -> Result<(u64, BoxStream<'static, Result<Bytes, Error>>), Error> {
        let read = |key: String| move |source| Error::Read { key, source };
        let found = self.0.get(&Key::from(key)).await.map_err(read(key.to_owned()))?;
        let (size, name) = (found.meta.size, key.to_owned());
        Ok((size, found.into_stream().map_err(move |source| read(name.clone())(source)).boxed()))
    }

    /// Gives a blob another name, in place of what is there.
    ///
    /// # Errors
    /// When it is not there or the store refuses.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let moved = self.0.rename(&Key::from(from), &Key::from(to)).await;
        moved.map_err(|source| Error::Write { key: to.to_owned(), source })
    }

    /// Removes it; fine when it is not there.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        match self.0.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Error::Write { key: key.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_is_too_long_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::local(dir.path()).unwrap();
        let chunks = || futures::stream::iter((0..10).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![1; 1000]))));
        assert!(matches!(blobs.put_stream("a/b", chunks(), 5_000).await, Err(Error::TooLarge { .. })));
        assert!(blobs.get("a/b").await.is_err());
        assert_eq!(blobs.put_stream("a/b", chunks(), 10_000).await.unwrap(), 10_000);
        assert_eq!(blobs.get("a/b").await.unwrap().len(), 10_000);
        assert_eq!(blobs.get_range("a/b", 9_990, 10).await.unwrap().len(), 10);
        blobs.delete("a/b").await.unwrap();
        blobs.delete("a/b").await.unwrap();
    }
}
