//! `Reloader`: reads the configuration again while the node runs, and has it take effect.
//!
//! What is reloaded is a list of [`Reloadable`]s. Each first gets ready, which is where it may refuse;
//! only when all are ready they change over, which cannot fail. So a configuration takes effect as a
//! whole, or nothing of it does.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::adapters::config::{Changes, Config, Origin, Settings};
use crate::app::Live;

use super::log_level::LogSwitch;

/// Something that takes its settings, or files that they name, anew while the node runs.
pub(super) trait Reloadable: Send + Sync {
    /// Gets ready for this configuration, and changes nothing yet. Called at every reload, also if
    /// nothing in the configuration is new: the files that it names may be. May block.
    ///
    /// # Errors
    /// Why it cannot take it, every reason. Nothing is changed then, here or elsewhere.
    fn prepare(&self, config: &Config) -> Result<Prepared, Vec<String>>;
}

/// A change that waits for the others.
pub(super) struct Prepared {
    /// What is new, in a few words for the log, if that is not the value of a key.
    pub(super) news: Option<String>,
    /// Makes the change. Must not block.
    pub(super) commit: Box<dyn FnOnce() + Send>,
}

impl Prepared {
    /// A change of nothing but values of keys.
    pub(super) fn of_keys(commit: impl FnOnce() + Send + 'static) -> Self {
        Self { news: None, commit: Box::new(commit) }
    }
}

/// Reads the configuration again when it is asked to.
pub(super) struct Reloader {
    origin: Origin,
    /// What the node runs with.
    settings: Mutex<Settings>,
    parts: Vec<Box<dyn Reloadable>>,
    log: Arc<LogSwitch>,
    live: Arc<Live>,
    asked: Notify,
}

impl Reloader {
    /// Of a node that runs with these settings, logs there, and counts its reloads there.
    pub(super) fn new(
        origin: Origin,
        settings: Settings,
        parts: Vec<Box<dyn Reloadable>>,
        log: Arc<LogSwitch>,
        live: Arc<Live>,
    ) -> Self {
        let (settings, asked) = (Mutex::new(settings), Notify::new());
        Self { origin, settings, parts, log, live, asked }
    }

    /// Asks for a reload, which follows soon. Whoever asks while one is under way gets another one.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Reloads whenever that is asked for, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let reloading = async {
            loop {
                self.asked.notified().await;
                let this = Arc::clone(&self);
                // Files are read, of which a disk may be slow.
                if tokio::task::spawn_blocking(move || this.reload()).await.is_err() {
                    self.live.count_refused();
                    tracing::error!("configuration not reloaded: a part of the node panicked");
                }
            }
        };
        tokio::select! {
            () = reloading => {}
            () = stop.cancelled() => {}
        }
    }

    fn reload(&self) {
        if let Err(mistakes) = self.try_reload() {
            self.live.count_refused();
            for mistake in mistakes {
                tracing::error!(%mistake, "configuration not reloaded, all settings stay as they are");
            }
        } else {
            self.live.count_applied();
        }
    }

    /// # Errors
    /// Every mistake; nothing was changed.
    fn try_reload(&self) -> Result<(), Vec<String>> {
        let (config, new) = self.origin.read()?;
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = settings.changes_to(&new).map_err(|mistake| vec![mistake])?;
        let (mut ready, mut refused) = (Vec::new(), Vec::new());
        for part in &self.parts {
            match part.prepare(&config) {
                Ok(prepared) => ready.push(prepared),
                Err(reasons) => refused.extend(reasons),
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        let news: Vec<_> = ready.iter().filter_map(|prepared| prepared.news.clone()).collect();
        for prepared in ready {
            (prepared.commit)();
        }
        settings.take_live(&new);
        let to = &config.log_level;
        let is_in_changes = changes.live.iter().any(|change| change.key == "log_level");
        self.log.change(to, |from| {
            // What an operator has asked for meanwhile ends here.
            let back = (!is_in_changes && from != to).then(|| format!("log_level: {from} -> {to}"));
            report(&changes, news.iter().cloned().chain(back));
        });
        Ok(())
    }
}

fn report(changes: &Changes, news: impl Iterator<Item = String>) {
    let of_keys = changes.live.iter().map(ToString::to_string);
    let all: Vec<_> = of_keys.chain(news).collect();
    let all = if all.is_empty() { "nothing".to_owned() } else { all.join(", ") };
    tracing::info!(changed = %all, "configuration reloaded");
    if !changes.need_restart.is_empty() {
        let keys = changes.need_restart.join(", ");
        tracing::warn!(%keys, "these settings have changed and need a restart");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::config::{Invocation, parse};
    use crate::app::{NodeSettings, RequestLimits};
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Takes `max_in_flight`, up to a limit.
    struct Part {
        taken: Arc<AtomicUsize>,
        max: usize,
    }

    impl Reloadable for Part {
        fn prepare(&self, config: &Config) -> Result<Prepared, Vec<String>> {
            let (taken, value) = (Arc::clone(&self.taken), config.max_in_flight);
            if value > self.max {
                return Err(vec![format!("{value} is too much")]);
            }
            Ok(Prepared::of_keys(move || taken.store(value, Ordering::Relaxed)))
        }
    }

    /// A reloader over a file, and two parts of which the second one is choosy.
    fn reloader(file: &Path) -> (Reloader, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let args = vec!["lally".into(), "--config".into(), file.into()];
        let Ok(Invocation::Run { settings, .. }) = parse(args.clone(), Vec::new()) else {
            panic!("it is refused")
        };
        let live = Live::new(RequestLimits::from(&NodeSettings::new("c", "a", "b")));
        let (one, two) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let part = |taken: &Arc<AtomicUsize>, max| -> Box<dyn Reloadable> {
            Box::new(Part { taken: Arc::clone(taken), max })
        };
        let parts = vec![part(&one, usize::MAX), part(&two, 10)];
        let (origin, log) =
            (Origin::new(args, Vec::new()), LogSwitch::new(Arc::new(|_| Ok(())), "info"));
        (Reloader::new(origin, settings, parts, log.into(), live.into()), one, two)
    }

    #[test]
    fn a_configuration_takes_effect_in_every_part_or_in_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lally.yml");
        std::fs::write(&file, "").unwrap();
        let (reloader, one, two) = reloader(&file);
        let mut counts = (0, 0);
        for (text, expected) in [
            ("max_in_flight: 7", Some(7)),
            // Refused by the second part.
            ("max_in_flight: 11", None),
            // By the configuration itself.
            ("max_in_flight: 0", None),
            ("max_in_flight: 8\nfsnyc: always", None),
            ("max_in_flight: [", None),
            ("max_in_flight: 9", Some(9)),
        ] {
            std::fs::write(&file, text).unwrap();
            let before = one.load(Ordering::Relaxed);
            reloader.reload();
            match expected {
                Some(_) => counts.0 += 1,
                None => counts.1 += 1,
            }
            let now = expected.unwrap_or(before);
            assert_eq!((one.load(Ordering::Relaxed), two.load(Ordering::Relaxed)), (now, now));
            let stats = reloader.live.counts();
            assert_eq!((stats.applied, stats.refused), counts, "{text}");
        }
    }

    #[test]
    fn what_needs_a_restart_does_not_stop_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lally.yml");
        std::fs::write(&file, "").unwrap();
        let (reloader, one, _) = reloader(&file);
        std::fs::write(&file, "max_in_flight: 3\nhttp_port: 1\n").unwrap();
        reloader.reload();
        assert_eq!(one.load(Ordering::Relaxed), 3);
        let (_, new) = reloader.origin.read().unwrap();
        let left = reloader.settings.lock().unwrap().changes_to(&new).unwrap();
        assert_eq!((left.live, left.need_restart), (vec![], vec!["http_port"]));
    }
}
