//! `TokenFile`: who may do what, in a file that holds no secret: tokens stand in it as their hashes.
//!
//! A token is 32 random bytes, so a plain SHA-256 of it can neither be guessed nor reversed; what slow
//! hashes are for, words that people choose, is not what a token is. The one that is shown is hashed,
//! and compared with all of them in constant time: how long that takes tells nothing about any.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::domain::{Access, Role};
use crate::ports::Gatekeeper;

/// Above it, the comparisons with all of them would be most of what a request costs.
const MAX_TOKENS: usize = 1_000;

const MAX_FILE_BYTES: u64 = 1_024 * 1_024;

const MAX_NAME_BYTES: usize = 64;

/// What tokens made here begin with, so that one that lies about can be told for what it is.
const PREFIX: &str = "lally_";

const HEADER: &str = "\
# The tokens of a Lally node, made by `lally token new`; see docs/security.md. No secret: a token
# stands here as its SHA-256. To take one back, remove its entry and send the node a SIGHUP.
";

/// The tokens in a file.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    known: ArcSwap<Vec<Known>>,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    hash: Hash,
    access: Arc<Access>,
}

/// A SHA-256.
type Hash = [u8; 32];

/// What is wrong with a file of tokens, or kept one from being made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read or written.
    #[error("the file of tokens {}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It says what means nothing.
    #[error("the file of tokens {}: {wrong}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What, and what is expected.
        wrong: String,
    },
}

/// As it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    role: String,
    sha256: String,
    prefixes: Option<Vec<String>>,
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let known = ArcSwap::from_pointee(read(path)?);
        Ok(Self { path: path.to_owned(), known })
    }

    /// Reads the file anew. What is returned has that count from then on; those of before do until then.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn reread(this: &Arc<Self>) -> Result<impl FnOnce() + Send + use<>, TokenError> {
        let (this, known) = (Arc::clone(this), Arc::new(read(&this.path)?));
        Ok(move || this.known.store(known))
    }

    /// How many tokens there are.
    pub fn count(&self) -> usize {
        self.known.load().len()
    }
}

impl Gatekeeper for TokenFile {
    fn access(&self, token: &[u8]) -> Option<Arc<Access>> {
        let hash: Hash = Sha256::digest(token).into();
        let known = self.known.load();
        // All of them are looked at, also behind the right one.
        let right = known.iter().fold(None, |right, known| {
            if bool::from(known.hash.ct_eq(&hash)) { Some(known) } else { right }
        });
        right.map(|known| Arc::clone(&known.access))
    }
}

/// Makes a token, which is known only to whom it is told: it is returned, and its hash is appended to
/// the file, which comes into being if it is not there.
///
/// # Errors
/// [`TokenError`], also if the file has that name already. It is as before then.
pub fn create(
    path: &Path,
    name: &str,
    role: Role,
    prefixes: &[String],
) -> Result<String, TokenError> {
    // What a link leads to is replaced, and not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let failed = |error| TokenError::Io { path: path.to_owned(), error };
    let before = match text(path) {
        Err(TokenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            HEADER.to_owned()
        }
        text => text?,
    };
    let token = format!("{PREFIX}{}", hexadecimal(&rand::random::<Hash>()));
    let end = if before.ends_with('\n') { "" } else { "\n" };
    let after = format!("{before}{end}{}", entry(name, role, prefixes, &token));
    // What is appended may not fit what was there.
    parse(path, &after)?;
    write_beside(path, &after).map_err(failed)?;
    Ok(token)
}

/// An entry of the file, in flow style, where texts are those of JSON.
fn entry(name: &str, role: Role, prefixes: &[String], token: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let hash = hexadecimal(&Sha256::digest(token));
    let prefixes: Vec<String> = prefixes.iter().map(|prefix| quoted(prefix)).collect();
    let prefixes = match prefixes.as_slice() {
        [] => String::new(),
        prefixes => format!("  prefixes: [{}]\n", prefixes.join(", ")),
    };
    let (name, role) = (quoted(name), role.as_str());
    format!("- name: {name}\n  role: {role}\n  sha256: \"{hash}\"\n{prefixes}")
}

/// Replaces a file as a whole: whoever reads it meanwhile reads all of the old one or of the new one.
fn write_beside(path: &Path, text: &str) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
    let mut file = written?;
    let done = like(path, &file)
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, path));
    if done.is_err() {
        fs::remove_file(&draft).ok();
    }
    done
}

/// Gives a file the owner and the mode of the one that it replaces, whose node reads it.
fn like(path: &Path, file: &File) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        old => old?,
    };
    file.set_permissions(old.permissions())?;
    let new = file.metadata()?;
    if (old.uid(), old.gid()) == (new.uid(), new.gid()) {
        return Ok(());
    }
    fchown(file, Some(old.uid()), Some(old.gid()))
}

fn read(path: &Path) -> Result<Vec<Known>, TokenError> {
    parse(path, &text(path)?)
}

fn text(path: &Path) -> Result<String, TokenError> {
    let failed = |error| TokenError::Io { path: path.to_owned(), error };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let wrong = format!("it is longer than {MAX_FILE_BYTES} bytes");
        return Err(TokenError::Wrong { path: path.to_owned(), wrong });
    }
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Known>, TokenError> {
    let refuse = |wrong: String| TokenError::Wrong { path: path.to_owned(), wrong };
    // One without an entry is a null.
    let lines: Option<Vec<Line>> = serde_yaml::from_str(text).map_err(|error| {
        refuse(format!(
            "{error}; expected a list of entries with name, role, sha256 and, if not every key is meant, prefixes, as `lally token new` makes them"
        ))
    })?;
    let lines = lines.unwrap_or_default();
    if lines.len() > MAX_TOKENS {
        return Err(refuse(format!("{} tokens; expected at most {MAX_TOKENS}", lines.len())));
    }
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    let mut known = Vec::with_capacity(lines.len());
    for line in lines {
        let in_entry = |wrong: String| refuse(format!("entry {:?}: {wrong}", line.name));
        if line.name.is_empty() || line.name.len() > MAX_NAME_BYTES {
            return Err(in_entry(format!("a name has 1 to {MAX_NAME_BYTES} bytes")));
        }
        if !names.insert(line.name.clone()) {
            return Err(in_entry("there is another one of this name".into()));
        }
        let role = Role::named(&line.role).ok_or_else(|| {
            in_entry(format!("role {:?}; expected read, write or admin", line.role))
        })?;
        let hash = hash(&line.sha256)
            .ok_or_else(|| in_entry("sha256; expected 64 hexadecimal digits".into()))?;
        if !hashes.insert(hash) {
            return Err(in_entry("another entry has the same sha256".into()));
        }
        let access = match line.prefixes.clone() {
            None => Access::to_all_keys(role),
            Some(prefixes) => {
                Access::to_prefixes(role, prefixes).map_err(|wrong| in_entry(wrong.to_string()))?
            }
        };
        known.push(Known { hash, access: Arc::new(access) });
    }
    Ok(known)
}

fn hash(text: &str) -> Option<Hash> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes?.try_into().ok()
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16);
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.yml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_token_that_was_made_gives_what_it_was_made_for_and_is_not_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.yml");
        let prefixes = ["user:".to_owned(), "a\"b\\é: ".to_owned()];
        let reader = create(&path, "reader", Role::Read, &[]).unwrap();
        let writer = create(&path, "a \"name\": x", Role::Write, &prefixes).unwrap();
        let admin = create(&path, "admin", Role::Admin, &[]).unwrap();
        let tokens = TokenFile::open(&path).unwrap();
        assert_eq!(tokens.count(), 3);
        let access = |token: &str| tokens.access(token.as_bytes()).map(|access| (*access).clone());
        assert_eq!(access(&reader), Some(Access::to_all_keys(Role::Read)));
        assert_eq!(access(&admin), Some(Access::to_all_keys(Role::Admin)));
        let expected = Access::to_prefixes(Role::Write, prefixes.to_vec()).unwrap();
        assert_eq!(access(&writer), Some(expected));
        let text = fs::read_to_string(&path).unwrap();
        for token in [&reader, &writer, &admin] {
            assert_eq!(token.len(), PREFIX.len() + 64);
            assert!(!text.contains(&token[PREFIX.len()..]));
        }
        for wrong in ["", "x", &reader[1..], &format!("{reader} "), &reader.to_uppercase()] {
            assert_eq!(access(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_of_tokens_is_for_its_owner_only_and_stays_as_it_is_when_nothing_is_added() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.yml");
        create(&path, "one", Role::Read, &[]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link.yml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        create(&link, "zero", Role::Read, &[]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        fs::remove_file(&link).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains("zero"));
        for (name, role, prefixes) in [
            ("one", Role::Read, vec![]),
            ("", Role::Read, vec![]),
            ("two", Role::Admin, vec!["a".to_owned()]),
        ] {
            assert!(create(&path, name, role, &prefixes).is_err());
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_hash_made_elsewhere_counts_too() {
        // printf secret | sha256sum
        let hash = "2BB80D537B1DA3E38BD30361AA855686BDE0EACD7162FEF6A25FE97BF527A25B";
        let (_dir, path) = written(&format!("- {{name: a, role: write, sha256: {hash}}}"));
        let tokens = TokenFile::open(&path).unwrap();
        assert!(tokens.access(b"secret").is_some());
        assert!(tokens.access(b"Secret").is_none());
    }

    #[test]
    fn what_is_wrong_is_said_with_the_entry_and_what_is_expected() {
        let hash = "0".repeat(64);
        for (text, says) in [
            ("name: a".to_owned(), "expected a list"),
            (format!("- {{name: a, role: write, sha256: {hash}, prefix: x}}"), "prefix"),
            (format!("- {{name: a, role: root, sha256: '{hash}'}}"), "read, write or admin"),
            ("- {name: a, role: read, sha256: abc}".to_owned(), "64 hexadecimal"),
            (format!("- {{name: a, role: read, sha256: 'é{}'}}", &hash[2..]), "64 hexadecimal"),
            (format!("- {{name: a, role: admin, sha256: '{hash}', prefixes: [x]}}"), "admin"),
            (format!("- {{name: a, role: read, sha256: '{hash}', prefixes: []}}"), "empty"),
            (
                format!("- {{name: a, role: read, sha256: '{hash}'}}\n").repeat(2),
                "another one of this name",
            ),
            (
                format!(
                    "- {{name: a, role: read, sha256: '{hash}'}}\n- {{name: b, role: read, sha256: '{hash}'}}"
                ),
                "the same sha256",
            ),
        ] {
            let (_dir, path) = written(&text);
            let said = TokenFile::open(&path).unwrap_err().to_string();
            assert!(said.contains(says) && said.contains("tokens.yml"), "{text}: {said}");
        }
        let missing = TokenFile::open(Path::new("/nonexistent/tokens.yml")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/tokens.yml"));
    }

    #[test]
    fn a_reload_takes_what_is_there_now_and_keeps_what_was_if_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.yml");
        let old = create(&path, "old", Role::Read, &[]).unwrap();
        let tokens = Arc::new(TokenFile::open(&path).unwrap());
        fs::write(&path, "- {name: old}").unwrap();
        assert!(TokenFile::reread(&tokens).is_err());
        fs::remove_file(&path).unwrap();
        let new = create(&path, "new", Role::Read, &[]).unwrap();
        let change_over = TokenFile::reread(&tokens).unwrap();
        assert!(tokens.access(old.as_bytes()).is_some() && tokens.access(new.as_bytes()).is_none());
        change_over();
        assert!(tokens.access(old.as_bytes()).is_none() && tokens.access(new.as_bytes()).is_some());
        fs::write(&path, "# nobody\n").unwrap();
        TokenFile::reread(&tokens).unwrap()();
        assert_eq!(tokens.count(), 0);
        assert!(tokens.access(new.as_bytes()).is_none());
    }
}
