//! Ways through a bad network, without either side noticing more than that things take long.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
};

/// Time until TCP sends again what got lost; it doubles each time.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// The most often that it is lost in a row: 13 s.
const LOSSES: u32 = 6;
/// How often a piece that waits looks at the weather.
const LOOK: Duration = Duration::from_millis(10);
/// Pieces on their way in one direction.
const IN_FLIGHT: usize = 256;

/// What the network does to what is sent through it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Weather {
    Clear,
    /// Nothing passes.
    Cut,
    /// So much of what is sent is lost, and comes when TCP sends it again.
    Lossy(f64),
    /// Everything comes so much later, give or take so much.
    Slow(Duration, Duration),
}

/// A way to one address.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    weather: Shared,
}

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<(Weather, fastrand::Rng)>>);

impl Proxy {
    pub(crate) async fn to(target: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let weather = Shared(Arc::new(Mutex::new((Weather::Clear, fastrand::Rng::with_seed(1)))));
        let around = weather.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, weather) = (target.clone(), around.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(&target).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, weather.clone()), carry(far_in, near_out, weather));
                });
            }
        });
        Ok(Self { address, weather })
    }

    /// From now on; also for what is on its way already.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.lock().0 = weather;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Weather, fastrand::Rng)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much later than it was sent a piece comes.
    fn delay(&self) -> Duration {
        let (weather, random) = &mut *self.lock();
        match *weather {
            Weather::Clear | Weather::Cut => Duration::ZERO,
            Weather::Lossy(part) => {
                let lost = (0..LOSSES).take_while(|_| random.f64() < part).count();
                (0..lost).map(|again| RETRANSMISSION * (1 << again)).sum()
            }
            Weather::Slow(mean, spread) => (mean - spread) + 2 * spread.mul_f64(random.f64()),
        }
    }

    fn holds_back(&self, until: Instant) -> bool {
        match self.lock().0 {
            Weather::Clear => false,
            Weather::Cut => true,
            Weather::Lossy(_) | Weather::Slow(..) => Instant::now() < until,
        }
    }
}

/// In order, as TCP delivers: what is not late waits for what is.
async fn carry(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, weather: Shared) {
    let (pieces, mut on_their_way) = mpsc::channel(IN_FLIGHT);
    let around = weather.clone();
    let sending = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let piece = (Instant::now() + around.delay(), Bytes::copy_from_slice(&buffer[..count]));
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    };
    let arriving = async move {
        while let Some((due, piece)) = on_their_way.recv().await {
            while weather.holds_back(due) {
                tokio::time::sleep(LOOK).await;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(sending, arriving);
}
