//! The log engine on every medium: each scenario is an ordinary async function and runs on all of them.

mod acceptance;
mod chain;
mod faults;
mod ownership;
mod reading;
mod world;

/// One test for each scenario and medium.
macro_rules! on_every_medium {
    ($($scenario:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(crate::world::World::memory()).await;
            })+
        }
    };
}
pub(crate) use on_every_medium;
