//! How commands speak to nodes: in TLS or as it is, with a token or without.

use std::fs;
use std::net::IpAddr;

use crate::adapters::config::{Login, Secret};
use crate::adapters::http::Remote;
use crate::adapters::tls;

use super::errors::RunError;

/// Those nodes, spoken to like this.
pub(super) fn remotes(addrs: &[String], login: &Login) -> Result<Vec<Remote>, RunError> {
    let trusted = login.ca.as_deref().map(|ca| tls::trusting(Some(ca))).transpose();
    let trusted = trusted.map_err(|error| RunError::Usage(format!("--ca: {error}")))?;
    let token = token(login)?;
    let remote = |addr: &String| {
        let remote = Remote::new(addr).in_tls(trusted.clone());
        let Some(token) = &token else { return Ok(remote) };
        if login.ca.is_none() && !login.insecure && !is_here(remote.host()) {
            return Err(RunError::Usage(format!(
                "the token would go to {addr} in the clear; say with --ca of which authority the node's \
                 certificate is, or with LALLY_INSECURE=true that the network is trusted"
            )));
        }
        remote.with_token(token.reveal()).map_err(|_| {
            RunError::Usage("the token has characters that none has, a line break perhaps".into())
        })
    };
    addrs.iter().map(remote).collect()
}

/// That node, likewise.
pub(super) fn remote(addr: &str, login: &Login) -> Result<Remote, RunError> {
    let remotes = remotes(&[addr.to_owned()], login)?;
    remotes.into_iter().next().ok_or_else(|| RunError::Usage("no node is named".into()))
}

/// Whether a host is this machine. A name but `localhost` may be any.
fn is_here(host: &str) -> bool {
    let ip = host.parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The one that is given, or what is in the file.
fn token(login: &Login) -> Result<Option<Secret>, RunError> {
    let Some(path) = login.token_file.as_ref().filter(|_| login.token.is_none()) else {
        return Ok(login.token.clone());
    };
    let text = fs::read_to_string(path);
    let text = text.map_err(|error| {
        RunError::Usage(format!("the file of the token {}: {error}", path.display()))
    })?;
    Ok(Some(Secret::new(text.trim().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_another_host_in_the_clear_only_if_that_is_said() {
        let token = Some(Secret::new("abc".into()));
        let login = Login { token, ..Login::default() };
        for here in ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(remote(here, &login).is_ok(), "{here}");
        }
        let trusted = Login { insecure: true, ..login.clone() };
        for away in ["db-1:1", "10.0.0.1:1", "[2001:db8::1]:1", "localhost.example.com:1"] {
            let refused = remote(away, &login).unwrap_err();
            assert!(refused.to_string().contains("--ca"), "{refused}");
            assert!(!refused.to_string().contains("abc"));
            assert!(remote(away, &trusted).is_ok() && remote(away, &Login::default()).is_ok());
        }
    }
}
