//! The log engine on every medium: each scenario is an ordinary async function and runs on all of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod acceptance;
mod chain;
mod collecting;
mod faults;
mod figures;
mod ownership;
mod reading;
mod restored;
mod sealing;
#[path = "../../server/tests/quorum/site.rs"]
mod site;
mod stepping;
mod stores;
mod switching;
mod weather;
mod world;

/// One test for each scenario and medium.
macro_rules! on_every_medium {
    ($($scenario:ident),+ $(,)?) => {
        $crate::on_every_medium!(@ memory $($scenario)+);
        $crate::on_every_medium!(@ local $($scenario)+);
        $crate::on_every_medium!(@ object $($scenario)+);
        $crate::on_every_medium!(@ quorum $($scenario)+);
    };
    (@ $medium:ident $($scenario:ident)+) => {
        mod $medium {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(crate::world::World::$medium().await).await;
            })+
        }
    };
}
pub(crate) use on_every_medium;
