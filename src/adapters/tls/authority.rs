//! The authority of a cluster (CA), and what it issues: a certificate for each node.
//!
//! For those who have no authority of their own; any other will do that puts the same names into its
//! certificates.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp as Moment, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::domain::Timestamp;

use super::errors::TlsError;
use super::peers::cluster_domain;
use super::pem;

/// The certificate of the authority, in its directory.
pub const CA_CERT: &str = "ca.pem";

/// Its key, which no node needs.
pub const CA_KEY: &str = "ca.key";

/// Clocks differ, and dates here are whole days.
const VALID_BEFORE_DAYS: i64 = 1;

/// What a certificate of a node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The node, by a name that is a file's, too.
    pub name: &'a str,
    /// Where clients reach it, beside its name and this machine itself: DNS names and IP addresses.
    pub hosts: &'a [String],
    /// The cluster that it is of.
    pub cluster: &'a str,
    /// For how long that holds.
    pub days: u32,
}

/// What was issued to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Its certificate.
    pub cert: PathBuf,
    /// The key of that.
    pub key: PathBuf,
}

/// Makes an authority in this directory, which comes into being: [`CA_CERT`] and [`CA_KEY`]. It holds
/// for so many days from now on.
///
/// # Errors
/// [`TlsError`], also if there is one. Then nothing is changed.
pub fn create_authority(dir: &Path, days: u32, now: Timestamp) -> Result<Issued, TlsError> {
    let issued = Issued { cert: dir.join(CA_CERT), key: dir.join(CA_KEY) };
    let mut params = params("Lally cluster authority", days, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.self_signed(&key).map_err(failed)?;
    write(dir, &issued, &cert.pem(), &key.serialize_pem())?;
    Ok(issued)
}

/// Issues a certificate for a node by the authority in this directory, and puts it there, under the
/// node's name.
///
/// # Errors
/// [`TlsError`], also if there is one for the node. Then nothing is changed.
pub fn issue(dir: &Path, subject: &Subject<'_>, now: Timestamp) -> Result<Issued, TlsError> {
    let Subject { name, hosts, cluster, days } = *subject;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 63 || !name.chars().all(is_plain) || name.starts_with('.') {
        return Err(TlsError::Refused(format!(
            "{name:?} is no name for a node; expected 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-'"
        )));
    }
    if name == "ca" {
        return Err(TlsError::Refused("\"ca\" is the authority; name the node otherwise".into()));
    }
    let issued =
        Issued { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
    let (ca_cert, ca_key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    let ca_key = KeyPair::from_pem(&text(&ca_key)?)
        .map_err(|error| TlsError::wrong(&ca_key, error.to_string()))?;
    let authority = Issuer::from_ca_cert_pem(&text(&ca_cert)?, ca_key)
        .map_err(|error| TlsError::wrong(&ca_cert, error.to_string()))?;

    let mut params = params(name, days, now)?;
    let cluster = cluster_domain(cluster)?.to_str().into_owned();
    let known_by = [name, "localhost", "127.0.0.1", "::1"].into_iter();
    params.subject_alt_names = [cluster.as_str()]
        .into_iter()
        .chain(known_by)
        .chain(hosts.iter().map(String::as_str))
        .map(san)
        .collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.signed_by(&key, &authority).map_err(failed)?;
    write(dir, &issued, &cert.pem(), &key.serialize_pem())?;
    Ok(issued)
}

fn params(name: &str, days: u32, now: Timestamp) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let (year, month, day) = date(now, -VALID_BEFORE_DAYS)?;
    params.not_before = date_time_ymd(year, month, day);
    // The last day counts as a whole.
    let (year, month, day) = date(now, i64::from(days) + 1)?;
    params.not_after = date_time_ymd(year, month, day);
    Ok(params)
}

/// Year, month and day, so many days from now.
fn date(now: Timestamp, days: i64) -> Result<(i32, u8, u8), TlsError> {
    let too_far =
        |error: jiff::Error| TlsError::Refused(format!("{days} days from now is no date: {error}"));
    let now = Moment::from_nanosecond(i128::from(now.as_nanos())).map_err(too_far)?;
    let span = Span::new().try_days(days).map_err(too_far)?;
    let date = now.to_zoned(TimeZone::UTC).checked_add(span).map_err(too_far)?.date();
    Ok((date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs()))
}

fn san(host: &str) -> Result<SanType, TlsError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let wrong = || {
        TlsError::Refused(format!(
            "{host:?} is no host; expected a DNS name or an IP address, without a port"
        ))
    };
    let is_name = tokio_rustls::rustls::pki_types::DnsName::try_from(host).is_ok();
    let name = host.try_into().ok().filter(|_| is_name);
    name.map(SanType::DnsName).ok_or_else(wrong)
}

fn failed(error: impl std::fmt::Display) -> TlsError {
    TlsError::Refused(format!("no certificate can be made: {error}"))
}

fn text(path: &Path) -> Result<String, TlsError> {
    String::from_utf8(pem::read(path)?).map_err(|_| TlsError::wrong(path, "no PEM"))
}

/// Both files, or none of them.
fn write(dir: &Path, issued: &Issued, cert: &str, key: &str) -> Result<(), TlsError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| TlsError::Io { path: dir.to_owned(), error })?;
    create(&issued.key, key, 0o600)?;
    create(&issued.cert, cert, 0o644).inspect_err(|_| {
        fs::remove_file(&issued.key).ok();
    })
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let failed = |error: io::Error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            let wrong = "it exists; move it away, or name another one";
            return TlsError::wrong(path, wrong);
        }
        TlsError::Io { path: path.to_owned(), error }
    };
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
        fs::remove_file(path).ok();
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::adapters::tls::{HttpTls, PeerTls, PeerTlsFiles, trusting};

    /// 2026-11-24; what is checked here is checked by today's clock, so the days are many.
    const NOW: Timestamp = Timestamp::from_nanos(1_795_500_000_000_000_000);
    const DAYS: u32 = 36_500;

    fn of<'a>(name: &'a str, cluster: &'a str) -> Subject<'a> {
        Subject { name, hosts: &[], cluster, days: DAYS }
    }

    fn files(dir: &Path, node: &Issued) -> PeerTlsFiles {
        PeerTlsFiles { ca: dir.join(CA_CERT), cert: node.cert.clone(), key: node.key.clone() }
    }

    #[test]
    fn what_is_issued_is_believed_in_its_cluster_and_in_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        create_authority(dir, DAYS, NOW).unwrap();
        for cluster in ["lally", "My_Cluster", "eu-1.prod", "9"] {
            let node = issue(dir, &of(&format!("n-{cluster}"), cluster), NOW).unwrap();
            PeerTls::open(files(dir, &node), cluster).unwrap();
            let other = PeerTls::open(files(dir, &node), "other").unwrap_err().to_string();
            assert!(other.contains("no other node would believe"), "{other}");
            HttpTls::open(&node.cert, &node.key).unwrap();
        }
        trusting(Some(&dir.join(CA_CERT))).unwrap();
        fs::write(dir.join("empty.pem"), "").unwrap();
        let none = trusting(Some(&dir.join("empty.pem"))).unwrap_err().to_string();
        assert!(none.contains("empty.pem") && none.contains("no certificate"), "{none}");
    }

    #[test]
    fn what_another_authority_issued_or_is_over_is_not_believed() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        create_authority(ours.path(), DAYS, NOW).unwrap();
        create_authority(theirs.path(), DAYS, NOW).unwrap();
        let foreign = issue(theirs.path(), &of("a", "lally"), NOW).unwrap();
        assert!(PeerTls::open(files(ours.path(), &foreign), "lally").is_err());
        let long_ago = Timestamp::from_nanos(1_000_000_000_000_000_000);
        let over = issue(ours.path(), &Subject { days: 30, ..of("b", "lally") }, long_ago).unwrap();
        let said = PeerTls::open(files(ours.path(), &over), "lally").unwrap_err().to_string();
        assert!(said.contains("b.pem") && said.to_lowercase().contains("expired"), "{said}");
    }

    #[test]
    fn keys_are_for_their_owner_only_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("deep/tls");
        let authority = create_authority(dir, DAYS, NOW).unwrap();
        let hosts = ["db-1.internal".to_owned(), "10.0.0.1".to_owned()];
        let node = issue(dir, &Subject { hosts: &hosts, ..of("a", "c") }, NOW).unwrap();
        let all = [&authority.cert, &authority.key, &node.cert, &node.key];
        let before = all.map(|path| fs::read(path).unwrap());
        for key in [&authority.key, &node.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = create_authority(dir, DAYS, NOW).unwrap_err().to_string();
        assert!(again.contains("it exists"), "{again}");
        assert!(issue(dir, &of("a", "c"), NOW).is_err());
        fs::remove_file(&node.key).unwrap();
        assert!(issue(dir, &of("a", "c"), NOW).is_err());
        assert!(!node.key.exists());
        assert_eq!(all.map(|path| fs::read(path).ok())[..3], before.map(Some)[..3]);
    }

    #[test]
    fn what_cannot_be_issued_is_refused_with_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(issue(dir, &of("a", "c"), NOW).unwrap_err().to_string().contains("ca.key"));
        create_authority(dir, DAYS, NOW).unwrap();
        for (name, host, cluster, says) in [
            ("", "h", "c", "name for a node"),
            ("a/b", "h", "c", "name for a node"),
            ("..", "h", "c", "name for a node"),
            ("ca", "h", "c", "authority"),
            ("a", "h:1", "c", "without a port"),
            ("a", "", "c", "without a port"),
            ("a", "h", "c..d", "cannot stand in a certificate"),
            ("a", "h", ".c", "cannot stand in a certificate"),
        ] {
            let refused = issue(dir, &Subject { hosts: &[host.into()], ..of(name, cluster) }, NOW)
                .unwrap_err();
            assert!(refused.to_string().contains(says), "{name} {host} {cluster}: {refused}");
        }
        assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
    }
}
