//! Work that takes long, beside what serves clients.

use tokio::sync::oneshot;

use crate::ports::LogError;

/// How far the work steps back when there are fewer cores than threads that want one, as in `nice(1)`:
/// a tenth of what the others get. Not further, for the work takes locks that the others need.
const NICENESS: i32 = 10;

/// Does it on a thread of its own, of low priority, and waits for it. Cancel safe: the work is
/// done all the same.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LogError> {
    let (tell, told) = oneshot::channel();
    let work = move || {
        // A thread of its own, since what has stepped back may not step forward again.
        if cfg!(target_os = "linux")
            && let Err(error) = rustix::process::setpriority_process(None, NICENESS)
        {
            tracing::debug!(%error, "the priority of a thread stays as it is");
        }
        // Whoever asked may be gone.
        tell.send(work()).ok();
    };
    let started = std::thread::Builder::new().name("lally-aside".into()).spawn(work);
    started.map_err(|error| LogError::Failed(format!("no thread: {error}")))?;
    told.await.map_err(|_| LogError::Failed("the work panicked".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_done_aside_comes_back() {
        assert_eq!(aside(|| 3).await, Ok(3));
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let failed = aside(|| panic!("as told")).await;
        assert!(matches!(failed, Err(LogError::Failed(_))), "{failed:?}");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn it_gives_way_and_others_do_not() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let here = nice();
        assert_eq!(aside(nice).await, Ok(NICENESS));
        assert_eq!(nice(), here);
    }
}
