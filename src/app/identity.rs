//! Who this node is: read from its book and raised by one generation before it serves.

use crate::domain::{KeptData, NodeId, Phase};
use crate::ports::{Book, BookError, MemberBook};

/// A node as its last life left it. Reading it changes nothing; [`claim`](Self::claim) begins the
/// next life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    book: Book,
    last_phase: Option<Phase>,
}

impl Identity {
    /// The node kept in `book`, or a new one named `new_id`.
    ///
    /// # Errors
    /// [`IdentityError`] when the book cannot be read or belongs to another cluster.
    pub async fn load(
        book: &dyn MemberBook,
        cluster: &str,
        new_id: NodeId,
    ) -> Result<Self, IdentityError> {
        let last = book.load().await?;
        if let Some(last) = &last
            && last.cluster != cluster
        {
            let (ours, theirs) = (cluster.to_owned(), last.cluster.clone());
            return Err(IdentityError::OtherCluster { ours, theirs });
        }
        let last_phase = last.as_ref().map(|last| last.phase);
        let book = last.unwrap_or_else(|| Book {
            id: new_id,
            generation: 0,
            phase: Phase::Joining,
            cluster: cluster.to_owned(),
            members: Vec::new(),
        });
        Ok(Self { book, last_phase })
    }

    /// Its name.
    pub const fn id(&self) -> NodeId {
        self.book.id
    }

    /// Whether it knows any other member.
    pub const fn knows_members(&self) -> bool {
        !self.book.members.is_empty()
    }

    /// Begins a new life: the generation is one higher, and that is durable when this returns. A
    /// node that goes on without the data it had is written down as one that has to join again;
    /// so it must be claimed before the data is touched, or a crash in between would leave a node
    /// that counts for quorums and is empty.
    ///
    /// Returns the book, and the phase reached in the last life; `None` if there was none.
    ///
    /// # Errors
    /// [`IdentityError`]; the book is unchanged then.
    pub async fn claim(
        self,
        book: &dyn MemberBook,
        data: KeptData,
    ) -> Result<(Book, Option<Phase>), IdentityError> {
        let mut claimed = self.book;
        claimed.generation += 1;
        if data != KeptData::All {
            claimed.phase = Phase::Joining;
        }
        book.save(&claimed).await?;
        Ok((claimed, self.last_phase))
    }
}

/// [`Identity::load`] and [`Identity::claim`] in one, for a node that keeps all its data.
///
/// # Errors
/// Theirs.
pub async fn claim_identity(
    book: &dyn MemberBook,
    cluster: &str,
    new_id: NodeId,
) -> Result<(Book, Option<Phase>), IdentityError> {
    Identity::load(book, cluster, new_id).await?.claim(book, KeptData::All).await
}

/// The node cannot say who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The book cannot be read or written.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The data belongs to another cluster.
    #[error(
        "the data directory belongs to the cluster {theirs:?}, not to {ours:?}; start with --cluster-name {theirs} or another --data-dir"
    )]
    OtherCluster {
        /// The configured name.
        ours: String,
        /// The name in the data directory.
        theirs: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::MockMemberBook;

    /// The book of a member that was whole in its third life.
    fn kept(cluster: &str) -> MockMemberBook {
        let last = Book {
            id: NodeId::new(7),
            generation: 3,
            phase: Phase::Whole,
            cluster: cluster.into(),
            members: Vec::new(),
        };
        let mut book = MockMemberBook::new();
        book.expect_load().returning(move || Ok(Some(last.clone())));
        book
    }

    #[tokio::test]
    async fn every_life_has_a_higher_generation_and_the_same_id() {
        let mut book = kept("lally");
        book.expect_save().times(1).withf(|book| book.generation == 4).returning(|_| Ok(()));
        let (claimed, last) = claim_identity(&book, "lally", NodeId::new(9)).await.unwrap();
        assert_eq!((claimed.id, claimed.generation), (NodeId::new(7), 4));
        assert_eq!(last, Some(Phase::Whole));
    }

    #[tokio::test]
    async fn a_node_without_its_data_is_written_down_as_one_that_has_to_join() {
        for (data, phase) in [
            (KeptData::All, Phase::Whole),
            (KeptData::None, Phase::Joining),
            (KeptData::Replaced, Phase::Joining),
            (KeptData::Incomplete, Phase::Joining),
        ] {
            let mut book = kept("lally");
            book.expect_save().times(1).withf(move |b| b.phase == phase).returning(|_| Ok(()));
            let identity = Identity::load(&book, "lally", NodeId::new(9)).await.unwrap();
            let (_, last) = identity.claim(&book, data).await.unwrap();
            assert_eq!(last, Some(Phase::Whole));
        }
    }

    #[tokio::test]
    async fn data_of_another_cluster_is_refused_and_left_alone() {
        let mut book = kept("blue");
        book.expect_save().times(0);
        let refused = claim_identity(&book, "green", NodeId::new(9)).await.unwrap_err();
        assert!(refused.to_string().contains("--cluster-name blue"), "{refused}");
    }
}
