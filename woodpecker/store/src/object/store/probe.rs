//! Whether a store really decides conditional PUTs.

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, path::Path};
use woodpecker_base::random::Random;

use super::StoreOpenError;

const WRITERS: usize = 8;
const NAMES: usize = 3;
/// Races for a name that an unreachable or failing store may spoil.
const SPOILED: usize = 3;

/// Races a few conditional PUTs for each of a few names: each race must have one winner, whose bytes stay.
///
/// # Errors
/// [`StoreOpenError::NoConditionalPut`] when two won or a loser's bytes were kept; [`StoreOpenError::Unavailable`]
/// when no answer could be had.
pub async fn probe(store: &dyn ObjectStore, random: &Random) -> Result<(), StoreOpenError> {
    // All names at once, since some stores make those who meet at one name wait for seconds.
    try_join_all((0..NAMES).map(|_| verdict(store, random))).await.map(|_| ())
}

async fn verdict(store: &dyn ObjectStore, random: &Random) -> Result<(), StoreOpenError> {
    let mut spoiled = 0;
    loop {
        let path = Path::from(format!("probe/{:032x}", random.u128()));
        let verdict = race(store, &path).await;
        // A probe that stays behind does no harm, and the verdict is not about deleting.
        let _ = store.delete(&path).await;
        match verdict {
            Err(StoreOpenError::Unavailable(_)) if spoiled < SPOILED => spoiled += 1,
            verdict => return verdict,
        }
    }
}

async fn race(store: &dyn ObjectStore, path: &Path) -> Result<(), StoreOpenError> {
    let body = |writer: usize| Bytes::from(format!("writer {writer}"));
    let put = |writer: usize| store.put_opts(path, body(writer).into(), PutMode::Create.into());
    let results = join_all((0..WRITERS).map(put)).await;
    let won: Vec<_> =
        results.iter().enumerate().filter(|(_, result)| result.is_ok()).map(|(writer, _)| writer).collect();
    for error in results.into_iter().filter_map(Result::err) {
        refused_properly(error)?;
    }
    if won.len() > 1 {
        return Err(StoreOpenError::NoConditionalPut(format!("{} of {WRITERS} racing writers won", won.len())));
    }
    // No winner is possible too: its answer got lost and its own retry met its own object. The bytes decide.
    let kept = read(store, path).await?;
    let winner = (0..WRITERS).find(|writer| body(*writer) == kept);
    if winner.is_none() || won.first().is_some_and(|won| Some(*won) != winner) {
        return Err(StoreOpenError::NoConditionalPut("the winner's bytes were not kept".to_owned()));
    }
    match store.put_opts(path, "late".into(), PutMode::Create.into()).await {
        Ok(_) => Err(StoreOpenError::NoConditionalPut("an existing object was overwritten".to_owned())),
        Err(error) => refused_properly(error),
    }
}

async fn read(store: &dyn ObjectStore, path: &Path) -> Result<Bytes, StoreOpenError> {
    let unavailable = |error: Error| StoreOpenError::Unavailable(error.to_string());
    store.get(path).await.map_err(unavailable)?.bytes().await.map_err(unavailable)
}

/// Ok when the error says that the name is taken.
fn refused_properly(error: Error) -> Result<(), StoreOpenError> {
    match error {
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Ok(()),
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            Err(StoreOpenError::NoConditionalPut(error.to_string()))
        }
        // The library has no kind of its own for "501 Not Implemented".
        error if error.to_string().contains("501 Not Implemented") => {
            Err(StoreOpenError::NoConditionalPut(error.to_string()))
        }
        error => Err(StoreOpenError::Unavailable(error.to_string())),
    }
}
