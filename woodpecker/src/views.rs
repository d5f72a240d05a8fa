//! The views of all logs this process has handles on, fed by one watch, which starts with the first reader that waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::StreamExt;
use tokio::sync::{Semaphore, watch};
use woodpecker_base::{
    metadata::{KeyValue, WatchEvent},
    tasks::Tasks,
};

use crate::{
    catalog::{Catalog, Found, decode_log},
    view::View,
};

/// Records that are read at once when many logs begin to be followed; each takes some memory meanwhile.
const READ_AT_ONCE: usize = 16;

#[derive(Debug)]
pub(crate) struct Views {
    catalog: Arc<Catalog>,
    tasks: Tasks,
    by_name: Mutex<BTreeMap<String, Weak<View>>>,
    feeding: AtomicBool,
    /// The watch stands: a record read from now on, and what the watch tells later, miss nothing between them.
    live: watch::Sender<bool>,
    reading: Arc<Semaphore>,
}

impl Views {
    pub fn new(catalog: Arc<Catalog>, tasks: Tasks) -> Self {
        Self {
            catalog,
            tasks,
            by_name: Mutex::default(),
            feeding: AtomicBool::new(false),
            live: watch::Sender::new(false),
            reading: Arc::new(Semaphore::new(READ_AT_ONCE)),
        }
    }

    fn by_name(&self) -> MutexGuard<'_, BTreeMap<String, Weak<View>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view of the log that was just read.
    pub fn of(&self, found: Found) -> Arc<View> {
        let mut views = self.by_name();
        if let Some(view) = views.get(&found.0.name).and_then(Weak::upgrade) {
            view.learn(found.clone(), []);
            if !view.is_deleted() {
                return view;
            }
        }
        // Amortised: the map is swept whenever it has doubled.
        if views.len().is_power_of_two() {
            views.retain(|_, view| view.strong_count() > 0);
        }
        let name = found.0.name.clone();
        let view = Arc::new(View::new(found));
        views.insert(name, Arc::downgrade(&view));
        view
    }

    /// Keeps the view up to date from now on; whether it was not before. A short task reads the record once, after the
    /// watch stands.
    pub fn follow(self: &Arc<Self>, view: &Arc<View>) -> bool {
        if view.followed.swap(true, Ordering::AcqRel) {
            return false;
        }
        if !self.feeding.swap(true, Ordering::AcqRel) {
            self.tasks.spawn_until_stopped(feed(Arc::downgrade(self), self.catalog.clone()));
        }
        let (view, catalog, mut live) = (view.clone(), self.catalog.clone(), self.live.subscribe());
        let reading = self.reading.clone();
        self.tasks.spawn_until_stopped(async move {
            if live.wait_for(|live| *live).await.is_err() {
                return;
            }
            let _turn = reading.acquire().await;
            match catalog.log(&view.name, None).await {
                Ok(Some(found)) => view.learn(found, []),
                Ok(None) => view.learn_deleted(None),
                Err(error) => tracing::warn!(log = view.name, %error, "cannot follow the log's record"),
            }
        });
        true
    }

    fn take(&self, event: WatchEvent, under: &str) {
        match event {
            WatchEvent::Put(item) => self.take_record(&item, under),
            WatchEvent::Delete { key, revision } => {
                if let Some(view) = self.find(&key, under) {
                    view.learn_deleted(Some(revision));
                }
            }
            WatchEvent::Resync(snapshot) => {
                let all: Vec<Arc<View>> = self.by_name().values().filter_map(Weak::upgrade).collect();
                let items: BTreeMap<&str, &KeyValue> =
                    snapshot.items.iter().filter_map(|item| Some((item.key.strip_prefix(under)?, item))).collect();
                for view in all {
                    match items.get(&*view.name) {
                        Some(item) => self.take_record(item, under),
                        None => view.learn_deleted(Some(snapshot.revision)),
                    }
                }
            }
        }
    }

    fn take_record(&self, item: &KeyValue, under: &str) {
        let Some(view) = self.find(&item.key, under) else { return };
        match decode_log(item) {
            Ok(found) => view.learn(found, []),
            Err(error) => tracing::warn!(log = view.name, %error, "a watched record is ignored"),
        }
    }

    fn find(&self, key: &str, under: &str) -> Option<Arc<View>> {
        self.by_name().get(key.strip_prefix(under)?).and_then(Weak::upgrade)
    }
}

async fn feed(views: Weak<Views>, catalog: Arc<Catalog>) {
    let (mut watch, under) = catalog.watch_logs().await;
    if let Some(views) = views.upgrade() {
        views.live.send_replace(true);
    }
    while let Some(event) = watch.next().await {
        let Some(views) = views.upgrade() else { return };
        match event {
            Ok(event) => views.take(event, &under),
            Err(error) => tracing::debug!(%error, "the watch of logs is interrupted"),
        }
    }
}
