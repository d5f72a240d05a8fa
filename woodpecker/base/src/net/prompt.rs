//! Who connects and says nothing keeps no place: what opens a conversation must come in time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::Clock;

/// What every client sends by itself: the preface of HTTP/2, and less than any request of HTTP/1.1 with its host.
const OPENING: usize = 24;

/// A byte stream that fails with `TimedOut` if its peer has not opened the conversation within a limit. After that it costs
/// nothing: keep-alives and idle limits are those of the protocol above.
pub(super) struct Prompt<S> {
    stream: S,
    waiting: Option<Waiting>,
}

struct Waiting {
    deadline: BoxFuture<'static, ()>,
    missing: usize,
}

impl<S> Prompt<S> {
    pub(super) fn new(stream: S, clock: &Clock, limit: Duration) -> Self {
        let clock = clock.clone();
        let deadline = async move { clock.sleep(limit).await }.boxed();
        Self { stream, waiting: Some(Waiting { deadline, missing: OPENING }) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let had = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(waiting) = &mut self.waiting else { return polled };
        waiting.missing = waiting.missing.saturating_sub(buf.filled().len() - had);
        if waiting.missing == 0 {
            self.waiting = None;
        } else if polled.is_pending() && waiting.deadline.poll_unpin(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn who_says_too_little_is_not_waited_for_and_who_opened_is_left_alone() {
        let clock = Clock::system();
        for said in [0, OPENING - 1] {
            let (mut peer, stream) = duplex(1024);
            peer.write_all(&vec![1; said]).await.unwrap();
            let (began, mut read) = (clock.now(), Vec::new());
            let error = Prompt::new(stream, &clock, LIMIT).read_to_end(&mut read).await.unwrap_err();
            assert_eq!((error.kind(), read.len()), (io::ErrorKind::TimedOut, said));
            assert_eq!(clock.now() - began, LIMIT);
        }
        let (mut peer, stream) = duplex(1024);
        let mut prompt = Prompt::new(stream, &clock, LIMIT);
        peer.write_all(&[1; OPENING]).await.unwrap();
        prompt.read_exact(&mut [0; OPENING]).await.unwrap();
        clock.timeout(100 * LIMIT, prompt.read_u8()).await.unwrap_err();
    }
}
