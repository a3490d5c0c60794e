//! `lally token` and `lally tls`: what a closed cluster needs is made.

use std::io::{self, Write};
use std::path::Path;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::TlsCommand;
use crate::adapters::tls::{self, Subject, TlsError};
use crate::adapters::tokens;
use crate::domain::Role;
use crate::ports::Clock;

use super::command::Stopped;
use super::errors::RunError;

/// Makes a token and prints it; everything else that is said goes to stderr.
pub(super) fn new_token(
    file: &Path,
    name: &str,
    role: Role,
    prefixes: &[String],
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    let token = tokens::create(file, name, role, prefixes)
        .map_err(|error| RunError::Command(error.to_string()))?;
    writeln!(out, "{token}")?;
    let file = file.display();
    let said = "the token is printed once and kept nowhere. A node that runs takes it when it gets a SIGHUP";
    // Who reads only the token has it all the same.
    writeln!(io::stderr(), "{file}: {name:?} added; {said}").ok();
    Ok(())
}

/// Makes an authority, or a certificate.
pub(super) fn certify(command: &TlsCommand, out: &mut (dyn Write + Send)) -> Result<(), Stopped> {
    let now = SystemClock.now();
    let made = match command {
        TlsCommand::Init { dir, days } => tls::create_authority(dir, *days, now),
        TlsCommand::Node { dir, name, hosts, cluster, days } => {
            let subject = Subject { name, hosts, cluster, days: *days };
            tls::issue(dir, &subject, now)
        }
    };
    let made = made.map_err(|error: TlsError| RunError::Command(error.to_string()))?;
    writeln!(out, "{}\n{}", made.cert.display(), made.key.display())?;
    Ok(())
}
