//! Cutting a byte stream into messages so that putting the messages back together gives the same bytes.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Cuts after every newline, and inside a line that is longer than `limit`. A message keeps its newline, so any input,
/// text or not, with or without a last newline, is the concatenation of its messages.
#[derive(Debug)]
pub(crate) struct Records<R> {
    input: R,
    limit: usize,
}

impl<R: AsyncBufRead + Unpin> Records<R> {
    pub(crate) fn new(input: R, limit: usize) -> Self {
        Self { input, limit: limit.max(1) }
    }

    /// The next message, or `None` at the end of the input.
    ///
    /// # Errors
    /// The input's.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut record = Vec::new();
        loop {
            let available = self.input.fill_buf().await?;
            if available.is_empty() {
                return Ok(if record.is_empty() { None } else { Some(record) });
            }
            let room = &available[..available.len().min(self.limit - record.len())];
            let newline = room.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(room.len(), |at| at + 1);
            record.extend_from_slice(&room[..taken]);
            self.input.consume(taken);
            if newline.is_some() || record.len() == self.limit {
                return Ok(Some(record));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn cut(input: &[u8], limit: usize, buffer: usize) -> Vec<Vec<u8>> {
        let mut records = Records::new(BufReader::with_capacity(buffer, input), limit);
        let mut all = Vec::new();
        while let Some(record) = records.next().await.unwrap() {
            all.push(record);
        }
        all
    }

    #[tokio::test]
    async fn lines_keep_their_newline() {
        assert_eq!(cut(b"a\n\nbc\nlast", 100, 3).await, [&b"a\n"[..], b"\n", b"bc\n", b"last"]);
        assert!(cut(b"", 100, 8).await.is_empty());
    }

    #[tokio::test]
    async fn long_lines_are_cut_at_the_limit() {
        assert_eq!(cut(b"abcdefg\nh", 3, 2).await, [&b"abc"[..], b"def", b"g\n", b"h"]);
        assert_eq!(cut(b"abc\n", 4, 8).await, [b"abc\n"]);
    }

    #[tokio::test]
    async fn any_bytes_come_back_whole() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..200 {
            let input: Vec<u8> = (0..random.usize(0..600)).map(|_| random.u8(8..12)).collect();
            let limit = random.usize(1..40);
            let records = cut(&input, limit, random.usize(1..50)).await;
            assert_eq!(records.concat(), input, "round {round}");
            assert!(records.iter().all(|r| !r.is_empty() && r.len() <= limit));
        }
    }
}
