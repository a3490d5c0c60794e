//! Access: what whoever shows a token may do.
//!
//! Three roles, each of which may do what the one before may, and, for reads and writes, the keys
//! that they may be about. Whom a token belongs to is not decided here.

/// What may be done, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Read values, and see the cluster.
    Read,
    /// Write and remove them, too.
    Write,
    /// Operate the cluster, too: forget members, compact logs, make backups.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// In one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

/// What a token gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    role: Role,
    /// Of the keys that are in reach; none: every key.
    prefixes: Vec<String>,
}

impl Access {
    /// Everything: what everybody has where there are no tokens.
    pub const EVERYTHING: Self = Self { role: Role::Admin, prefixes: Vec::new() };

    /// Every key, in this role.
    pub const fn to_all_keys(role: Role) -> Self {
        Self { role, prefixes: Vec::new() }
    }

    /// The keys that begin with one of these, in this role.
    ///
    /// # Errors
    /// [`InvalidAccess`]: nobody could say what that would mean.
    pub fn to_prefixes(role: Role, prefixes: Vec<String>) -> Result<Self, InvalidAccess> {
        if role == Role::Admin {
            return Err(InvalidAccess::AdminOfPrefixes);
        }
        if prefixes.is_empty() || prefixes.iter().any(String::is_empty) {
            return Err(InvalidAccess::EmptyPrefix);
        }
        Ok(Self { role, prefixes })
    }

    /// Whether what needs this role may be done.
    pub fn has(&self, role: Role) -> bool {
        self.role >= role
    }

    /// Whether this key is in reach.
    pub fn reaches(&self, key: &str) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| key.starts_with(prefix))
    }
}

/// Why this is no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAccess {
    /// A backup has every key, and so has a cluster.
    #[error("the role admin is about the whole node, and cannot have prefixes")]
    AdminOfPrefixes,
    /// None at all, or one without a character, which every key begins with.
    #[error("a prefix is empty; leave prefixes out for every key")]
    EmptyPrefix,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_what_the_one_before_may() {
        for (place, role) in Role::ALL.into_iter().enumerate() {
            let access = Access::to_all_keys(role);
            for (needed, need) in Role::ALL.into_iter().enumerate() {
                assert_eq!(access.has(need), needed <= place, "{role:?} {need:?}");
            }
            assert_eq!(Role::named(role.as_str()), Some(role));
        }
        assert_eq!(Role::named("root"), None);
        assert!(Role::ALL.into_iter().all(|need| Access::EVERYTHING.has(need)));
    }

    #[test]
    fn keys_are_in_reach_by_their_first_bytes() {
        let access =
            Access::to_prefixes(Role::Write, vec!["user:".into(), "é".into(), "a".into()]).unwrap();
        for (key, reached) in [
            ("user:1", true),
            ("user:", true),
            ("user", false),
            ("User:1", false),
            (" user:1", false),
            ("é1", true),
            ("e", false),
            ("a", true),
        ] {
            assert_eq!(access.reaches(key), reached, "{key}");
        }
        for role in Role::ALL {
            assert!(Access::to_all_keys(role).reaches("any"));
        }
    }

    #[test]
    fn what_would_mean_something_else_than_it_says_is_refused() {
        let of = |role, prefixes: &[&str]| {
            Access::to_prefixes(role, prefixes.iter().map(ToString::to_string).collect())
        };
        assert_eq!(of(Role::Admin, &["a"]), Err(InvalidAccess::AdminOfPrefixes));
        assert_eq!(of(Role::Read, &[]), Err(InvalidAccess::EmptyPrefix));
        assert_eq!(of(Role::Read, &["a", ""]), Err(InvalidAccess::EmptyPrefix));
    }
}
