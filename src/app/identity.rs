//! Who this node is: read from its book and raised by one generation before anything else.

use crate::domain::{NodeId, Phase};
use crate::ports::{Book, BookError, MemberBook};

/// Opens a new life of the node kept in `book`, or the first one, of a node named `new_id`: its
/// generation is one higher, and that is durable when this returns. The phase in the returned book
/// is the one reached in the last life; `None` beside it if there was none.
///
/// # Errors
/// [`IdentityError`]; the book is unchanged then.
pub async fn claim_identity(
    book: &dyn MemberBook,
    cluster: &str,
    new_id: NodeId,
) -> Result<(Book, Option<Phase>), IdentityError> {
    let last = book.load().await?;
    if let Some(last) = &last
        && last.cluster != cluster
    {
        let (ours, theirs) = (cluster.to_owned(), last.cluster.clone());
        return Err(IdentityError::OtherCluster { ours, theirs });
    }
    let last_phase = last.as_ref().map(|last| last.phase);
    let mut claimed = last.unwrap_or_else(|| Book {
        id: new_id,
        generation: 0,
        phase: Phase::Joining,
        cluster: cluster.to_owned(),
        members: Vec::new(),
    });
    claimed.generation += 1;
    book.save(&claimed).await?;
    Ok((claimed, last_phase))
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

    #[tokio::test]
    async fn every_life_has_a_higher_generation_and_the_same_id() {
        let mut book = MockMemberBook::new();
        book.expect_load().returning(|| {
            Ok(Some(Book {
                id: NodeId::new(7),
                generation: 3,
                phase: Phase::Whole,
                cluster: "lally".into(),
                members: Vec::new(),
            }))
        });
        book.expect_save().times(1).withf(|book| book.generation == 4).returning(|_| Ok(()));
        let (claimed, last) = claim_identity(&book, "lally", NodeId::new(9)).await.unwrap();
        assert_eq!((claimed.id, claimed.generation), (NodeId::new(7), 4));
        assert_eq!(last, Some(Phase::Whole));
    }

    #[tokio::test]
    async fn data_of_another_cluster_is_refused_and_left_alone() {
        let mut book = MockMemberBook::new();
        book.expect_load().returning(|| {
            Ok(Some(Book {
                id: NodeId::new(7),
                generation: 3,
                phase: Phase::Whole,
                cluster: "blue".into(),
                members: Vec::new(),
            }))
        });
        book.expect_save().times(0);
        let refused = claim_identity(&book, "green", NodeId::new(9)).await.unwrap_err();
        assert!(refused.to_string().contains("--cluster-name blue"), "{refused}");
    }
}
