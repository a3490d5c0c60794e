//! `ServingRuntime`: the threads that serve requests, and one more that stands by.
//!
//! Threads that have work for less than all of them take it from each other, wake each other, and move
//! what they share from core to core: of a request to two threads that share two cores with its client,
//! that is a sixth. So no more threads serve than are worth it. But each of them may be held up by a
//! system call: a write into the log of a disk that hangs takes seconds, and a thread in it polls neither
//! its tasks nor the sockets. So there is one thread more, which waits on a condition variable, in a task
//! of its own, as long as nobody is held up. For the runtime it is at work meanwhile.
//!
//! What is queued with a thread, others take when they have nothing else to do; what has yielded there,
//! they cannot (tokio keeps it in a list of the thread's own until the thread looks for events). So before
//! the thread stands, it finishes what it has, and it never stands for long: what it has overlooked waits
//! for a round at most.
//!
//! A watch asks the runtime at intervals for the least that it can do, to run an empty task. If that
//! takes long, the thread that stands by is let go, and serves, for a while. The question is of use also
//! where several threads serve: a thread that polls the sockets and then is held up in the first task
//! that they brought leaves the polling to nobody, until somebody else is woken.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

/// When the thread that stands by is let go, and for how long.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// How often the watch asks, and how long an answer may take.
    every: Duration,
    patience: Duration,
    /// How long the thread stands at a time.
    round: Duration,
    /// How long it serves the first time that it is let go, and at most: twice as long each time that it
    /// has stood for no longer than it served before.
    relief: Duration,
    relief_max: Duration,
}

impl Timing {
    /// So a disk that hangs holds up others for an eighth of a second, or a quarter at worst (but for the
    /// task that was to run next on the thread that it holds up), and a node that has nothing to do is
    /// woken fifteen times a second.
    const DEFAULT: Self = Self {
        every: Duration::from_millis(100),
        round: Duration::from_millis(200),
        patience: Duration::from_millis(25),
        relief: Duration::from_secs(1),
        relief_max: Duration::from_secs(60),
    };

    /// How long it serves after it has stood for this long, having served so long before.
    fn next_relief(&self, stood: Duration, before: Duration) -> Duration {
        if stood > before { self.relief } else { (2 * before).min(self.relief_max) }
    }
}

/// A queue that is through in this time was empty: a task that serves a request takes as long.
const NOTHING: Duration = Duration::from_micros(10);

/// So often the thread goes through its queue to find it empty, and after so long it tries again, then
/// after twice as long, and so on.
const TURNS: usize = 8;
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// A runtime with a thread that stands by.
pub struct ServingRuntime {
    /// Before the runtime, which when dropped waits for all its threads.
    watch: Watch,
    runtime: Runtime,
}

impl ServingRuntime {
    /// A runtime in which so many threads serve.
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn new(serving: NonZeroUsize) -> io::Result<Self> {
        Self::with_timing(serving, Timing::DEFAULT)
    }

    fn with_timing(serving: NonZeroUsize, timing: Timing) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(serving.saturating_add(1).get())
            .thread_name("lally-worker")
            .enable_all()
            .build()?;
        let post = Arc::new(Post::default());
        runtime.spawn(stand_by(Arc::clone(&post), timing));
        let (handle, for_thread, watch) =
            (runtime.handle().clone(), Arc::clone(&post), Watch(post));
        std::thread::Builder::new()
            .name("lally-watch".into())
            .spawn(move || ask(&handle, &for_thread, timing))?;
        Ok(Self { watch, runtime })
    }

    /// Runs a future to its end on this thread, and what it spawns on those of the runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Ends all threads, and waits for them no longer than this.
    pub fn shutdown(self, timeout: Duration) {
        drop(self.watch);
        self.runtime.shutdown_timeout(timeout);
    }
}

/// Ends when it is dropped, and lets go of the thread that stands by.
struct Watch(Arc<Post>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.set(|state| state.ended = true);
    }
}

/// Where one thread stands by.
#[derive(Default)]
struct Post {
    state: Mutex<Standing>,
    changed: Condvar,
}

#[derive(Default)]
struct Standing {
    stands: bool,
    ended: bool,
}

/// Why a thread stands no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    RoundIsOver,
    /// Somebody is held up.
    IsNeeded,
    Ended,
}

impl Post {
    fn state(&self) -> MutexGuard<'_, Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Has whoever stands by serve.
    fn let_go(&self) {
        self.set(|state| state.stands = false);
    }

    fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Holds this thread until the round is over, or it is [let go](Self::let_go).
    fn stand(&self, round: Duration) -> Why {
        let has_to_stand = |state: &mut Standing| state.stands && !state.ended;
        let waited = self.changed.wait_timeout_while(self.state(), round, has_to_stand);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match (state.ended, std::mem::take(&mut state.stands)) {
            (true, _) => Why::Ended,
            (false, true) => Why::RoundIsOver,
            (false, false) => Why::IsNeeded,
        }
    }
}

/// Has the thread that runs this stand by, with pauses in which it serves, until the end.
async fn stand_by(post: Arc<Post>, timing: Timing) {
    let (runtime, mut relief) = (Handle::current(), timing.relief);
    let mut began = Instant::now();
    loop {
        let mut pause = TRY_AGAIN;
        while !finish_what_is_queued().await {
            // Whoever has so much to do serves for now.
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(timing.round);
        }
        post.set(|state| state.stands = true);
        // The second takes the place of the task to run next, which nobody else can take, and wakes another
        // thread, which finds that nobody waits for events.
        runtime.spawn(std::future::ready(()));
        runtime.spawn(std::future::ready(()));
        match post.stand(timing.round) {
            Why::Ended => return,
            Why::RoundIsOver => {}
            Why::IsNeeded => {
                relief = timing.next_relief(began.elapsed(), relief);
                tracing::debug!(?relief, "the thread that stands by serves");
                tokio::time::sleep(relief).await;
                began = Instant::now();
            }
        }
    }
}

/// Lets the thread look for events, which has those run that have yielded there, and then run what is
/// queued with it. Whether nothing is left.
async fn finish_what_is_queued() -> bool {
    tokio::task::yield_now().await;
    for _ in 0..TURNS {
        let began = Instant::now();
        behind_what_is_queued().await;
        if began.elapsed() < NOTHING {
            return true;
        }
    }
    false
}

/// Goes to the end of the thread's queue, which yielding does not.
async fn behind_what_is_queued() {
    let mut is_behind = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Asks the runtime at intervals whether it runs tasks, until the end.
fn ask(runtime: &Handle, post: &Post, timing: Timing) {
    loop {
        let goes_on = |state: &mut Standing| !state.ended;
        let waited = post.changed.wait_timeout_while(post.state(), timing.every, goes_on);
        if waited.unwrap_or_else(PoisonError::into_inner).0.ended {
            return;
        }
        let (answer, answered) = sync_channel::<()>(1);
        runtime.spawn(async move { drop(answer) });
        // Dropped by a task that has run, or by a runtime that has ended.
        while answered.recv_timeout(timing.patience) == Err(RecvTimeoutError::Timeout) {
            post.let_go();
            if post.has_ended() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::mpsc::{Receiver, SyncSender};
    use std::thread::ThreadId;

    use super::*;

    const ONE: NonZeroUsize = NonZeroUsize::MIN;

    /// More than anything here takes, however slow the machine.
    const LONG: Duration = Duration::from_secs(30);

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Tasks hold up a thread each, until they are let go.
    fn hold_up(runtime: &ServingRuntime, threads: usize) -> SyncSender<()> {
        let (let_go, gate) = sync_channel(threads);
        let gate = Arc::new(Mutex::new(gate));
        let (held, is_held) = sync_channel(threads);
        for _ in 0..threads {
            let (gate, held) = (Arc::clone(&gate), held.clone());
            runtime.runtime.spawn(async move {
                held.send(()).unwrap();
                gate.lock().unwrap().recv().ok();
            });
        }
        for _ in 0..threads {
            is_held.recv_timeout(LONG).unwrap();
        }
        let_go
    }

    fn until_one_stands(runtime: &ServingRuntime) {
        let has_to_wait = |state: &mut Standing| !state.stands;
        let post = &runtime.watch.0;
        let waited = post.changed.wait_timeout_while(post.state(), LONG, has_to_wait);
        assert!(!waited.unwrap().1.timed_out());
    }

    fn answered(answer: &Receiver<()>) -> bool {
        answer.recv_timeout(LONG).is_ok()
    }

    fn task(runtime: &ServingRuntime) -> Receiver<()> {
        let (answer, answered) = sync_channel(1);
        runtime.runtime.spawn(async move { answer.send(()).unwrap() });
        answered
    }

    #[test]
    fn a_thread_that_is_held_up_holds_up_no_other_task() {
        let short = Duration::from_millis(10);
        let timing = Timing { relief: short, relief_max: short, ..Timing::DEFAULT };
        for serving in 1..=3 {
            let serving = NonZeroUsize::new(serving).unwrap();
            let runtime = ServingRuntime::with_timing(serving, timing).unwrap();
            until_one_stands(&runtime);
            let let_go = hold_up(&runtime, serving.get());
            for _ in 0..10 {
                assert!(answered(&task(&runtime)));
            }
            drop(let_go);
            until_one_stands(&runtime);
            runtime.shutdown(LONG);
        }
    }

    /// Whichever thread has polled the sockets last.
    #[test]
    fn a_thread_that_is_held_up_holds_up_no_connection() {
        let runtime = ServingRuntime::new(ONE).unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.runtime.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                Handle::current().spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        let let_go = hold_up(&runtime, 1);
        for _ in 0..10 {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(LONG)).unwrap();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
        drop(let_go);
        runtime.shutdown(LONG);
    }

    #[test]
    fn while_nobody_is_held_up_only_so_many_threads_serve() {
        let patient = Timing { patience: HOUR, round: HOUR, ..Timing::DEFAULT };
        let runtime = ServingRuntime::with_timing(ONE, patient).unwrap();
        until_one_stands(&runtime);
        let thread = async || -> ThreadId {
            let task = Handle::current().spawn(async {
                tokio::task::yield_now().await;
                std::thread::current().id()
            });
            task.await.unwrap()
        };
        let ran = runtime.block_on(async {
            let all = (0..1_000).map(|_| thread());
            futures_util::future::join_all(all).await
        });
        assert!(ran.iter().all(|id| *id == ran[0]));
        runtime.shutdown(LONG);
    }

    #[test]
    fn a_round_ends_by_itself_and_by_whoever_needs_the_thread() {
        let post = Post::default();
        let stand = |round| {
            post.set(|state| state.stands = true);
            post.stand(round)
        };
        assert_eq!(stand(Duration::ZERO), Why::RoundIsOver);
        assert!(!post.state().stands);
        post.set(|state| state.stands = true);
        post.let_go();
        assert_eq!(post.stand(HOUR), Why::IsNeeded);
        post.set(|state| state.ended = true);
        assert_eq!(stand(HOUR), Why::Ended);
    }

    /// Nobody else can take it: it is in a list of the thread's own.
    #[test]
    fn what_has_yielded_on_the_thread_that_stands_goes_on() {
        let timing = Timing { patience: HOUR, ..Timing::DEFAULT };
        let two = NonZeroUsize::new(2).unwrap();
        let runtime = ServingRuntime::with_timing(two, timing).unwrap();
        let second = Watch(Arc::default());
        let post = Arc::clone(&second.0);
        let (answer, is_answered) = sync_channel(1);
        runtime.runtime.spawn(async move {
            // Next on this thread.
            Handle::current().spawn(stand_by(post, timing));
            tokio::task::yield_now().await;
            answer.send(()).unwrap();
        });
        assert!(answered(&is_answered));
        drop(second);
        runtime.shutdown(LONG);
    }

    #[test]
    fn a_runtime_ends_although_a_thread_stands_by() {
        let runtime = ServingRuntime::new(ONE).unwrap();
        until_one_stands(&runtime);
        let post = Arc::clone(&runtime.watch.0);
        let began = Instant::now();
        runtime.shutdown(HOUR);
        assert!(began.elapsed() < LONG && !post.state().stands);
    }

    #[test]
    fn who_has_to_step_in_again_soon_stays_longer() {
        let timing = Timing::DEFAULT;
        let mut relief = timing.relief;
        let mut all = Vec::new();
        for _ in 0..8 {
            relief = timing.next_relief(Duration::from_millis(500), relief);
            all.push(relief.as_secs());
        }
        assert_eq!(all, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(timing.next_relief(Duration::from_secs(61), relief), timing.relief);
    }
}
