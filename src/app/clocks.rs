//! `Clocks`: asks the members for their time, and says when this node's own clock is the wrong one.
//!
//! The decision is [`ClockSkew`]'s, and, of a clock that has not come to where others have forgotten
//! what was removed, [`BehindHorizon`]'s. A node whose clock is wrong would stamp writes that others
//! refuse, or that lose against older ones; so it takes none from clients until it is right, which
//! the next round finds out. It goes on to take in what others send, and to answer reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;

use crate::domain::{BehindHorizon, ClockSample, ClockSkew, MemberState, NodeId};
use crate::ports::{Clock, Peer, PeerTransport};

use super::members::Members;

/// How often the members are asked.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// How long an answer may take: what takes longer says little about a clock.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// The clocks of a cluster, seen from one node.
pub(crate) struct Clocks {
    members: Arc<Members>,
    transport: Arc<dyn PeerTransport>,
    wall: Arc<dyn Clock>,
    max_drift_ns: u64,
    /// Of the last round: those that answered.
    samples: Mutex<Vec<ClockSample>>,
    /// What they say of this node's clock: looked at by every write.
    skew: ArcSwapOption<ClockSkew>,
}

impl Clocks {
    pub(crate) fn new(
        members: Arc<Members>,
        transport: Arc<dyn PeerTransport>,
        wall: Arc<dyn Clock>,
        max_drift: Duration,
    ) -> Self {
        let max_drift_ns = u64::try_from(max_drift.as_nanos()).unwrap_or(u64::MAX);
        Self {
            members,
            transport,
            wall,
            max_drift_ns,
            samples: Mutex::default(),
            skew: ArcSwapOption::empty(),
        }
    }

    /// Asks for as long as the node runs.
    pub(crate) async fn run(&self) {
        loop {
            self.ask_all().await;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Whether this node's clock may stamp writes.
    ///
    /// # Errors
    /// Why not, for whoever wants to write.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_skew().map_err(|skew| skew.to_string())?;
        let now = self.wall.now();
        let Some(horizon) = self.members.horizon_beyond(now) else { return Ok(()) };
        let checked = BehindHorizon::check(now, horizon, &self.samples(), self.max_drift_ns);
        checked.map_err(|behind| behind.to_string())
    }

    fn check_skew(&self) -> Result<(), ClockSkew> {
        self.skew.load().as_deref().map_or(Ok(()), |skew| Err(*skew))
    }

    /// How far a member's clock was off this node's, in milliseconds, if it answered lately.
    pub(crate) fn offset_ms(&self, member: NodeId) -> Option<i64> {
        let samples = self.samples();
        samples.iter().find(|s| s.peer == member).map(|sample| sample.offset_ns / 1_000_000)
    }

    async fn ask_all(&self) {
        let view = self.members.view();
        let up = view.others().filter(|(_, state)| *state == MemberState::Alive);
        let answers = join_all(up.map(|(member, _)| self.ask(Peer::from(member)))).await;
        let was_right = self.check_skew().is_ok();
        let samples: Vec<_> = answers.into_iter().flatten().collect();
        let verdict = ClockSkew::check(&samples, self.max_drift_ns);
        *self.samples() = samples;
        self.skew.store(verdict.err().map(Arc::new));
        match verdict {
            Err(skew) if was_right => tracing::error!(%skew, "clock wrong"),
            Ok(()) if !was_right => tracing::info!("clock right again: writes are taken"),
            _ => {}
        }
    }

    async fn ask(&self, peer: Peer) -> Option<ClockSample> {
        let asked = self.wall.now();
        let answer = self.transport.wall_time(&peer, ANSWER_WITHIN).await.ok()?;
        self.members.statements().note_heard(peer.id);
        let theirs = answer?;
        Some(ClockSample::measure(peer.id, asked, theirs, self.wall.now()))
    }

    fn samples(&self) -> MutexGuard<'_, Vec<ClockSample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
