//! How commands speak to nodes: in TLS or as it is, with a token or without.

use std::fs;

use crate::adapters::config::{Login, Secret};
use crate::adapters::http::Remote;
use crate::adapters::tls;

use super::errors::RunError;

/// Those nodes, spoken to like this.
pub(super) fn remotes(addrs: &[String], login: &Login) -> Result<Vec<Remote>, RunError> {
    let trusted = login.ca.as_deref().map(tls::trusting).transpose();
    let trusted = trusted.map_err(|error| RunError::Usage(format!("--ca: {error}")))?;
    let token = token(login)?;
    let remote = |addr: &String| {
        let remote = Remote::new(addr).in_tls(trusted.clone());
        let Some(token) = &token else { return Ok(remote) };
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
