//! `Guard`: who is let in, and for what.
//!
//! Whether a node lives and is ready is told to everybody: supervisors have no tokens. Everything else
//! needs one, if there are any, and is refused before its body is read; which keys are in reach can be
//! judged only once it is. Where there are tokens, a path that is not known here is nowhere, whatever the
//! router knows: a route that is forgotten here is closed, and not open to all.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, header};

use crate::domain::{Access, Key, Role};
use crate::ports::Gatekeeper;

use super::errors::{Code, Refusal};
use super::openapi::OPENAPI_PATH;

/// Nobody has a longer one, and who sends one has us hash it.
const MAX_TOKEN_BYTES: usize = 512;

const NO_TOKEN: &str = "this node takes requests with a token only; send the header `Authorization: \
                        Bearer TOKEN` (lally: LALLY_TOKEN); `lally token new` makes one";

/// Who is let in.
#[derive(Clone, Default)]
pub struct Guard {
    gatekeeper: Option<Arc<dyn Gatekeeper>>,
    metrics_need_token: bool,
}

impl Guard {
    /// Everybody, for everything.
    pub fn open() -> Self {
        Self::default()
    }

    /// Those with a token; for the metrics, too, if that is asked for.
    pub fn of(gatekeeper: Arc<dyn Gatekeeper>, metrics_need_token: bool) -> Self {
        Self { gatekeeper: Some(gatekeeper), metrics_need_token }
    }

    /// What whoever sends this may do, if it is as much as the path needs.
    pub(super) fn admit(&self, path: &str, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        let Some(gatekeeper) = &self.gatekeeper else {
            return self.open_to(path, headers).map(|()| Admitted(None));
        };
        let needed = match self.needed(path) {
            Needed::Nothing => return Ok(Admitted(None)),
            needed => needed,
        };
        let token = token(headers)?;
        let access = gatekeeper.access(token).ok_or_else(|| {
            Refusal::new(Code::Unauthorized, "this node does not know the token, or not any more")
        })?;
        let Needed::Role(needed) = needed else { return Err(Refusal::nowhere()) };
        if !access.has(needed) {
            let role = needed.as_str();
            let message = format!("this needs a token of the role {role}, or of one that may more");
            return Err(Refusal::new(Code::Forbidden, message));
        }
        Ok(Admitted(Some(access)))
    }

    /// Without tokens a node on the loopback would do what any page asks that is looked at on its machine.
    /// So what a page of another site has a browser send is refused, by what the browser says (Fetch
    /// Metadata; nobody else says that), unless it is what everybody is told.
    fn open_to(&self, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        match headers.get("sec-fetch-site") {
            Some(site) if site == "cross-site" && self.needed(path) != Needed::Nothing => {
                let message = "a page of another site sends this; without tokens that is not taken";
                Err(Refusal::new(Code::Forbidden, message))
            }
            _ => Ok(()),
        }
    }

    fn needed(&self, path: &str) -> Needed {
        match path {
            "/healthz" | "/readyz" | OPENAPI_PATH => Needed::Nothing,
            "/metrics" if !self.metrics_need_token => Needed::Nothing,
            "/get" | "/nodes" | "/cluster" | "/cluster/safe-to-stop" | "/metrics" => {
                Needed::Role(Role::Read)
            }
            "/add" | "/remove" => Needed::Role(Role::Write),
            "/cluster/forget" => Needed::Role(Role::Admin),
            _ if path.starts_with("/admin/") => Needed::Role(Role::Admin),
            _ => Needed::Unknown,
        }
    }
}

/// What a path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needed {
    /// Everybody is told.
    Nothing,
    /// A token of this role, or of one that may more.
    Role(Role),
    /// There is no such path. Who has a token is told so.
    Unknown,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("is_open", &self.gatekeeper.is_none()).finish_non_exhaustive()
    }
}

/// Somebody who was let in.
#[derive(Debug)]
pub(super) struct Admitted(Option<Arc<Access>>);

impl Admitted {
    /// Refuses a key that is out of reach.
    pub(super) fn check(&self, key: &Key) -> Result<(), Refusal> {
        match &self.0 {
            Some(access) if !access.reaches(key.as_str()) => {
                let message = "the token is for keys with other beginnings than this one has";
                Err(Refusal::new(Code::Forbidden, message))
            }
            _ => Ok(()),
        }
    }
}

/// The token in a request (RFC 6750, 2.1).
fn token(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    let unauthorized = |message| Refusal::new(Code::Unauthorized, message);
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(first) = given.next() else { return Err(unauthorized(NO_TOKEN)) };
    if given.next().is_some() {
        return Err(unauthorized("there is more than one Authorization header; send one"));
    }
    let (scheme, token) = first.as_bytes().split_at_checked("bearer ".len()).unwrap_or_default();
    let token = token.trim_ascii();
    if !scheme.eq_ignore_ascii_case(b"bearer ") || token.is_empty() {
        return Err(unauthorized(NO_TOKEN));
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(unauthorized("the token is longer than any"));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::http::openapi;
    use crate::ports::MockGatekeeper;

    fn guard(metrics_need_token: bool) -> Guard {
        let mut gatekeeper = MockGatekeeper::new();
        gatekeeper.expect_access().returning(|token| {
            let role = Role::named(std::str::from_utf8(token).ok()?)?;
            Some(Arc::new(Access::to_all_keys(role)))
        });
        Guard::of(Arc::new(gatekeeper), metrics_need_token)
    }

    fn with(authorization: &[&str]) -> HeaderMap {
        let header = |text: &&str| (header::AUTHORIZATION, text.parse().unwrap());
        authorization.iter().map(header).collect()
    }

    #[test]
    fn every_path_is_for_its_role_and_those_that_may_more() {
        let paths = [
            ("/healthz", None),
            ("/readyz", None),
            (OPENAPI_PATH, None),
            ("/get", Some(Role::Read)),
            ("/nodes", Some(Role::Read)),
            ("/cluster", Some(Role::Read)),
            ("/cluster/safe-to-stop", Some(Role::Read)),
            ("/metrics", Some(Role::Read)),
            ("/add", Some(Role::Write)),
            ("/remove", Some(Role::Write)),
            ("/cluster/forget", Some(Role::Admin)),
            ("/admin/compact", Some(Role::Admin)),
            ("/admin/backup", Some(Role::Admin)),
            ("/admin/what-is-to-come", Some(Role::Admin)),
        ];
        for (path, needed) in paths {
            assert!(Guard::open().admit(path, &HeaderMap::new()).is_ok());
            let code = |headers: &HeaderMap| guard(true).admit(path, headers).err().map(|r| r.code);
            let refused = needed.map(|_| Code::Unauthorized);
            for headers in [&[][..], &["Bearer unknown"], &["Basic read"]] {
                assert_eq!(code(&with(headers)), refused, "{path} {headers:?}");
            }
            for role in Role::ALL {
                let may = needed.is_none_or(|needed| role >= needed);
                let headers = with(&[&format!("Bearer {}", role.as_str())]);
                assert_eq!(code(&headers), (!may).then_some(Code::Forbidden), "{path} {role:?}");
            }
        }
        assert!(guard(false).admit("/metrics", &HeaderMap::new()).is_ok());
    }

    /// A new one must say which role it needs, or be named here.
    #[test]
    fn every_path_of_the_api_needs_a_role_but_those_that_everybody_may_ask() {
        let open = ["/healthz", "/readyz", OPENAPI_PATH];
        for path in openapi::paths().as_object().unwrap().keys() {
            let needed = guard(true).needed(path);
            assert_ne!(needed, Needed::Unknown, "{path}");
            assert_eq!(needed == Needed::Nothing, open.contains(&path.as_str()), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_not_known_is_nowhere_and_only_who_has_a_token_is_told() {
        for path in ["/nothing", "/", "", "*", "/admin", "/get/", "//get", "/%67et", "/GET", "/new"]
        {
            let code = |token: &str| guard(true).admit(path, &with(&[token])).unwrap_err().code;
            assert_eq!(code("Bearer unknown"), Code::Unauthorized, "{path}");
            for role in Role::ALL {
                assert_eq!(code(&format!("Bearer {}", role.as_str())), Code::NotFound, "{path}");
            }
            let none = guard(true).admit(path, &HeaderMap::new()).unwrap_err();
            assert_eq!(none.code, Code::Unauthorized, "{path}");
            // Without tokens the router says so.
            assert!(Guard::open().admit(path, &HeaderMap::new()).is_ok());
        }
    }

    #[test]
    fn a_token_is_taken_from_one_header_of_its_scheme_and_from_nothing_else() {
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        for (headers, expected) in [
            (&["Bearer abc"][..], Some("abc")),
            (&["bearer abc"], Some("abc")),
            (&["BEARER  abc "], Some("abc")),
            (&[], None),
            (&["Bearer"], None),
            (&["Bearer "], None),
            (&["abc"], None),
            (&["Basic YTpi"], None),
            (&["Bearerabc def"], None),
            (&["Bearer abc", "Bearer abc"], None),
            (&[&long], None),
        ] {
            let headers = with(headers);
            assert_eq!(token(&headers).ok(), expected.map(str::as_bytes), "{headers:?}");
        }
        assert_eq!(token(&with(&[&long[..long.len() - 1]])).unwrap().len(), MAX_TOKEN_BYTES);
    }

    #[test]
    fn what_a_page_of_another_site_sends_needs_a_token() {
        let from = |site: &str| {
            let mut headers = with(&["Bearer write"]);
            headers.insert("sec-fetch-site", site.parse().unwrap());
            headers
        };
        for (site, taken) in
            [("cross-site", false), ("same-site", true), ("same-origin", true), ("none", true)]
        {
            for path in ["/add", "/cluster", "/admin/compact"] {
                assert_eq!(Guard::open().admit(path, &from(site)).is_ok(), taken, "{site}");
            }
            assert!(Guard::open().admit("/healthz", &from(site)).is_ok());
            assert!(guard(true).admit("/add", &from(site)).is_ok());
        }
    }

    #[test]
    fn a_key_out_of_reach_is_refused() {
        let access = Access::to_prefixes(Role::Read, vec!["a".into()]).unwrap();
        let admitted = Admitted(Some(Arc::new(access)));
        assert!(admitted.check(&Key::new("a1").unwrap()).is_ok());
        let refused = admitted.check(&Key::new("b").unwrap()).unwrap_err();
        assert_eq!(refused.code, Code::Forbidden);
        assert!(Admitted(None).check(&Key::new("b").unwrap()).is_ok());
    }
}
