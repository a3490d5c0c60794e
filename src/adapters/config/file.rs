//! The configuration file, as it is read: YAML within bounds.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::absence;

/// Nobody's configuration is longer; a device or a log given by mistake is.
const MAX_FILE_BYTES: u64 = 1_024 * 1_024;

/// What stands in it, and what must not be left blank and is; or what is wrong with it, as the rest of a
/// sentence.
pub(super) fn mapping(path: &Path) -> Result<(serde_yaml::Mapping, Vec<&'static str>), String> {
    let text = read_text(path)?;
    let yaml: serde_yaml::Value =
        serde_yaml::from_str(&text).map_err(|error| format!("is not valid YAML: {error}"))?;
    match yaml {
        serde_yaml::Value::Null => Ok((serde_yaml::Mapping::new(), Vec::new())),
        serde_yaml::Value::Mapping(mapping) => Ok((mapping, absence::blank_in(&text))),
        _ => Err("is not a mapping; expected lines of KEY: VALUE".to_owned()),
    }
}

/// The text of the file, or what is wrong with it, as the rest of a sentence.
fn read_text(path: &Path) -> Result<String, String> {
    let fails = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "does not exist; expected the path of a YAML file".to_owned(),
        ErrorKind::IsADirectory => "is a directory; expected the path of a YAML file".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(fails)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(fails)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is longer than {MAX_FILE_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}
