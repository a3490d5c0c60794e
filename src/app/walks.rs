//! `Walks`: where walks over all keys of the store happen.
//!
//! A walk over millions of keys is too long for the threads that serve clients, so it gets one of its
//! own. A simulation has one thread only and must know what happens next: there it is a step like
//! any other.

use std::sync::Arc;

use crate::domain::{BucketSet, Key, Timestamp};
use crate::ports::Store;

/// Where walks over all keys happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Walks {
    /// On a thread of the runtime's pool for blocking work.
    #[default]
    Aside,
    /// On the thread that asks, after whatever else is ready: for simulations, where everything
    /// happens on one thread in an order that can be repeated.
    InPlace,
}

impl Walks {
    /// The keys in these buckets, ordered by bucket. Cancel safe.
    pub(crate) async fn keys_in(self, store: &Arc<dyn Store>, buckets: BucketSet) -> Vec<Key> {
        self.walk(store, move |store| store.keys_in(&buckets)).await
    }

    /// Counts the digests of these buckets anew; how many had drifted. Cancel safe: a recount that
    /// has begun goes on.
    pub(crate) async fn recount(self, store: &Arc<dyn Store>, buckets: BucketSet) -> u64 {
        self.walk(store, move |store| store.recount(&buckets)).await
    }

    async fn walk<T: Default + Send + 'static>(
        self,
        store: &Arc<dyn Store>,
        walk: impl FnOnce(&dyn Store) -> T + Send + 'static,
    ) -> T {
        match self {
            Self::Aside => {
                let store = Arc::clone(store);
                tokio::task::spawn_blocking(move || walk(store.as_ref())).await.unwrap_or_default()
            }
            Self::InPlace => {
                tokio::task::yield_now().await;
                walk(store.as_ref())
            }
        }
    }

    /// Drops the tombstones stamped up to `through`; how many those were. Cancel safe: they are
    /// dropped all the same, or none is.
    pub(crate) async fn drop_tombstones(self, store: &Arc<dyn Store>, through: Timestamp) -> u64 {
        match self {
            Self::Aside => {
                let store = Arc::clone(store);
                let walk = tokio::task::spawn_blocking(move || store.drop_tombstones(through));
                walk.await.unwrap_or_default()
            }
            Self::InPlace => {
                tokio::task::yield_now().await;
                store.drop_tombstones(through)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::MockStore;

    /// The threads on which the walks happened.
    async fn walked_on(walks: Walks) -> [std::thread::ThreadId; 2] {
        let (sender, on) = std::sync::mpsc::sync_channel(2);
        let mut store = MockStore::new();
        let looked = sender.clone();
        store.expect_keys_in().returning(move |_| {
            looked.send(std::thread::current().id()).unwrap();
            vec![Key::new("k").unwrap()]
        });
        store.expect_drop_tombstones().returning(move |_| {
            sender.send(std::thread::current().id()).unwrap();
            3
        });
        let store: Arc<dyn Store> = Arc::new(store);
        assert_eq!(walks.keys_in(&store, BucketSet::all()).await, [Key::new("k").unwrap()]);
        assert_eq!(walks.drop_tombstones(&store, Timestamp::from_nanos(9)).await, 3);
        [on.recv().unwrap(), on.recv().unwrap()]
    }

    #[tokio::test]
    async fn a_walk_leaves_the_threads_that_serve_alone_unless_it_is_to_happen_in_place() {
        let here = std::thread::current().id();
        assert!(walked_on(Walks::Aside).await.iter().all(|thread| *thread != here));
        assert_eq!(walked_on(Walks::InPlace).await, [here; 2]);
    }
}
