//! A small file system in memory, for tests that fill a disk.
//!
//! It needs root and the right to mount; elsewhere such a test is skipped and says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of a given size, until dropped.
pub struct SmallDisk {
    root: PathBuf,
}

impl SmallDisk {
    /// Mounts one in this directory, which is created.
    pub fn mount(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let options = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("SKIPPED: a file system in memory cannot be mounted here (not root?)");
        }
        mounted.then(|| Self { root: at.to_owned() })
    }

    /// Takes this much of the space, until [freed](Self::free).
    pub fn take(&self, bytes: usize) {
        fs::write(self.ballast(), vec![0; bytes]).unwrap();
    }

    /// Takes all the space that is left.
    pub fn take_all(&self) {
        // Up to the error, that is. A file system in memory keeps what was written before it.
        let whole = vec![0; 1 << 20];
        assert!(fs::write(self.ballast(), whole).is_err(), "the disk is larger than thought");
    }

    /// Gives the space back that was taken.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node of a test that failed may still be on it.
        if !Command::new("umount").arg("-l").arg(&self.root).status().is_ok_and(|s| s.success()) {
            eprintln!("{} is still mounted", self.root.display());
        }
    }
}
