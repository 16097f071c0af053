//! Framing: JSON messages on a stream, each after its length as a big-endian `u32`.
//!
//! Knows bytes and limits, never what a message means. Oversized and malformed frames are errors, before any
//! memory is taken for them.

use anyhow::{Context, Result, ensure};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::{Serialize, de::DeserializeOwned};

/// The longest message of a token stream, in bytes of JSON.
pub const FRAME_MAX_BYTES: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;
const READ_BYTES: usize = 4 * 1024;

/// Writes one message and flushes it.
///
/// # Errors
/// If it is longer than [`FRAME_MAX_BYTES`] (nothing is written then) or the stream fails.
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> Result<()> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message).context("encode a message")?;
    let length = frame.len() - LENGTH_BYTES;
    ensure!(length <= FRAME_MAX_BYTES, "a message of {length} bytes is longer than {FRAME_MAX_BYTES}");
    frame[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
    stream.write_all(&frame).await.context("write a message")?;
    stream.flush().await.context("flush a message")
}

/// Reads messages off a stream; a read that is cancelled loses nothing.
#[derive(Debug)]
pub struct FrameReader<S> {
    stream: S,
    /// What was read and not yet returned: at most one frame and [`READ_BYTES`].
    buffer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> FrameReader<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Returns the stream; bytes read ahead are dropped.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Returns the next message, or `None` where the stream ends between two messages.
    ///
    /// # Errors
    /// If the stream fails or ends inside a message, or the message is too long or not the JSON of a `T`. The
    /// stream is useless then.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return serde_json::from_slice(&frame).map(Some).context("a message is not what this stream carries");
            }
            let mut chunk = [0; READ_BYTES];
            match self.stream.read(&mut chunk).await.context("read a message")? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => anyhow::bail!("the stream ended inside a message"),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(head) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        ensure!(length <= FRAME_MAX_BYTES, "a message announces {length} bytes, more than {FRAME_MAX_BYTES}");
        let end = LENGTH_BYTES + length;
        if self.buffer.len() < end {
            return Ok(None);
        }
        Ok(Some(self.buffer.drain(..end).skip(LENGTH_BYTES).collect()))
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    async fn read_all(bytes: Vec<u8>) -> Result<Vec<String>> {
        let mut reader = FrameReader::new(Cursor::new(bytes));
        let mut messages = vec![];
        while let Some(message) = reader.next().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[tokio::test]
    async fn messages_come_back_in_order() {
        let mut bytes = vec![];
        let long = "x".repeat(FRAME_MAX_BYTES - 2);
        for message in ["one", "", &long, "drei"] {
            write_frame(&mut bytes, &message).await.unwrap();
        }
        assert_eq!(bytes[..6], [0, 0, 0, 5, b'"', b'o']);
        assert_eq!(read_all(bytes).await.unwrap(), ["one", "", &long, "drei"]);
    }

    #[tokio::test]
    async fn a_message_too_long_is_neither_written_nor_read() {
        let mut bytes = vec![];
        let error = write_frame(&mut bytes, &"x".repeat(FRAME_MAX_BYTES - 1)).await.unwrap_err();
        assert!(error.to_string().contains("longer than 65536"), "{error}");
        assert!(bytes.is_empty());
        let announced = (FRAME_MAX_BYTES as u32 + 1).to_be_bytes().to_vec();
        assert!(read_all(announced).await.unwrap_err().to_string().contains("announces 65537 bytes"));
    }

    #[tokio::test]
    async fn a_torn_or_foreign_message_is_an_error() {
        assert!(read_all(vec![0, 0, 0, 9, b'"']).await.unwrap_err().to_string().contains("ended inside a message"));
        assert!(read_all(vec![0, 0, 0, 2, b'4', b'2']).await.is_err());
    }
}
