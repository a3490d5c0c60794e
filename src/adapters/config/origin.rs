//! `Origin`: where a node's configuration comes from, to read it again.

use std::ffi::OsString;

use super::{Config, Invocation, Settings, parse};

/// The command line and the environment with which a node was started. The file that they name is read
/// anew each time, and they win over it as they did at the start.
#[derive(Debug, Clone)]
pub struct Origin {
    args: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl Origin {
    /// Of the arguments (the first is the program) and the environment that [`parse`] is given.
    pub const fn new(args: Vec<OsString>, env: Vec<(String, String)>) -> Self {
        Self { args, env }
    }

    /// Reads the configuration, from the file in its present state.
    ///
    /// # Errors
    /// Every mistake in it, in the words of a start.
    pub fn read(&self) -> Result<(Config, Settings), Vec<String>> {
        match parse(self.args.clone(), self.env.clone()) {
            Ok(Invocation::Run { config, settings }) => Ok((*config, settings)),
            Ok(Invocation::Do(..)) => Err(vec!["the command line asks for no node".to_owned()]),
            Err(exit) if exit.mistakes.is_empty() => Err(vec![exit.text]),
            Err(exit) => Err(exit.mistakes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_anew_and_the_environment_and_the_flags_still_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let args = ["lally", "--config", path.to_str().unwrap(), "--http-port", "1"];
        let env = vec![("LALLY_GRPC_PORT".to_owned(), "2".to_owned())];
        let origin = Origin::new(args.map(OsString::from).to_vec(), env);
        write("max_in_flight: 3\n");
        assert_eq!(origin.read().unwrap().0.max_in_flight, 3);
        write("max_in_flight: 4\nhttp_port: 5\ngrpc_port: 6\n");
        let config = origin.read().unwrap().0;
        assert_eq!((config.max_in_flight, config.http_port, config.grpc_port), (4, 1, 2));
        write("max_in_flight: none of your business\nhttp_prot: 1\n");
        let mistakes = origin.read().unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }
}
