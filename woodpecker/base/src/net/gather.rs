//! Gathers what a connection's owner writes in one go. HTTP/2 writes each frame of some size by itself, so that a message
//! for many readers of one connection would cost a call of the system for each of them.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// From here on it is written before more is taken.
const MOST: usize = 64 << 10;
/// What is as large as this gains nothing from being copied.
const LARGE: usize = 16 << 10;

/// A byte stream that writes what was flushed when its owner comes back to read: a flush asks for that to happen after
/// everything else that is ready to run, which may have more to write. So its owner must go on reading, or shut it down;
/// servers and clients of HTTP do both.
#[derive(Debug)]
pub(super) struct Gathered<S> {
    stream: S,
    buffer: BytesMut,
    /// It was flushed, and the owner's task is to run again.
    flushed: bool,
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), flushed: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.buffer.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(written);
        }
        self.flushed = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.flushed
            && let Poll::Ready(Err(error)) = self.poll_write_out(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        if bytes >= LARGE || self.buffer.len() + bytes > MOST {
            ready!(self.poll_write_out(cx))?;
        }
        if bytes >= LARGE {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        bufs.iter().for_each(|buf| self.buffer.extend_from_slice(buf));
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return Pin::new(&mut self.stream).poll_flush(cx);
        }
        if !self.flushed {
            self.flushed = true;
            // From within its own run a task goes behind all that are ready.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Takes so many bytes, and never has any.
    #[derive(Debug, Default)]
    struct Wire {
        writes: Vec<Vec<u8>>,
        room: usize,
        shut: bool,
    }

    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn over(room: usize) -> Gathered<Wire> {
        Gathered::new(Wire { room, ..Wire::default() })
    }

    fn write(gathered: &mut Gathered<Wire>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<usize> {
        Pin::new(gathered).poll_write(cx, bytes).map(Result::unwrap)
    }

    fn flush(gathered: &mut Gathered<Wire>, cx: &mut Context<'_>) {
        assert!(matches!(Pin::new(gathered).poll_flush(cx), Poll::Ready(Ok(()))));
    }

    /// What the owner does when it runs again; nothing comes in.
    fn read(gathered: &mut Gathered<Wire>, cx: &mut Context<'_>) {
        assert!(Pin::new(gathered).poll_read(cx, &mut ReadBuf::new(&mut [0; 8])).is_pending());
    }

    #[test]
    fn what_is_written_and_flushed_in_one_run_leaves_together_in_the_next_which_is_asked_for_once() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut gathered = over(usize::MAX);
        for round in 1..=2 {
            for frame in [b"one ", b"two ", b"six "] {
                assert_eq!(write(&mut gathered, &mut cx, frame), Poll::Ready(4));
                flush(&mut gathered, &mut cx);
            }
            assert_eq!(woken.0.load(Ordering::Relaxed), round);
            read(&mut gathered, &mut cx);
            assert_eq!(gathered.stream.writes, vec![b"one two six ".to_vec(); round]);
        }
    }

    #[test]
    fn what_was_not_flushed_waits_for_more() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut gathered = over(usize::MAX);
        assert_eq!(write(&mut gathered, &mut cx, b"half"), Poll::Ready(4));
        read(&mut gathered, &mut cx);
        assert!(gathered.stream.writes.is_empty());
    }

    #[test]
    fn a_peer_that_takes_nothing_stops_the_writer_and_nothing_is_lost() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut gathered = over(0);
        let mut taken = 0;
        while write(&mut gathered, &mut cx, &[7; 1000]).is_ready() {
            flush(&mut gathered, &mut cx);
            read(&mut gathered, &mut cx);
            taken += 1000;
        }
        assert!(taken <= MOST && taken > MOST - 1000, "{taken} bytes wait");
        assert!(Pin::new(&mut gathered).poll_shutdown(&mut cx).is_pending());
        gathered.stream.room = usize::MAX;
        assert!(Pin::new(&mut gathered).poll_shutdown(&mut cx).is_ready());
        assert!(gathered.stream.shut);
        assert_eq!(gathered.stream.writes.concat(), vec![7; taken]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_arrive_as_they_were_written(
            sizes in prop::collection::vec((1_usize..40_000, any::<bool>()), 1..40),
            room in 1_usize..100_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (arrived, written) = runtime.block_on(async {
                let (near, mut far) = duplex(room);
                let mut written = Vec::new();
                let sending = async {
                    let (mut reading, mut writing) = tokio::io::split(Gathered::new(near));
                    let sending = async {
                        for (number, (size, flush)) in sizes.iter().enumerate() {
                            let bytes = vec![u8::try_from(number).unwrap(); *size];
                            writing.write_all(&bytes).await.unwrap();
                            written.extend(bytes);
                            if *flush {
                                writing.flush().await.unwrap();
                            }
                        }
                        writing.shutdown().await.unwrap();
                    };
                    let mut none = [0; 1];
                    let (mut sending, mut reading) = (pin!(sending), pin!(reading.read(&mut none)));
                    tokio::select! {
                        () = &mut sending => {}
                        _ = &mut reading => panic!("the peer sends nothing"),
                    }
                };
                let mut arrived = Vec::new();
                let receiving = async { far.read_to_end(&mut arrived).await.unwrap() };
                tokio::join!(sending, receiving);
                (arrived, written)
            });
            prop_assert_eq!(arrived, written);
        }
    }
}
