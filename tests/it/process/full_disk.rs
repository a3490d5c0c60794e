//! A disk that is full: writes are refused, reads go on, and space is all it takes to go on.
//!
//! The data directory is a small file system in memory, which needs root and the right to mount;
//! elsewhere the test is skipped and says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::node::Setup;

/// A file system of this size, until dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let options = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node of a test that failed may still be on it.
        if !Command::new("umount").arg("-l").arg(&self.0).status().is_ok_and(|s| s.success()) {
            eprintln!("{} is still mounted", self.0.display());
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_goes_on_when_there_is_space() {
    let setup = Setup::new();
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 1 << 20) else {
        eprintln!("SKIPPED: a file system in memory cannot be mounted here (not root?)");
        return;
    };
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 512 * 1024]).unwrap();
    let mut node = setup.start_ready();
    let mut client = node.client();
    let value = "x".repeat(20_000);
    let written = (0..1_000)
        .find(|i| {
            let reply = client.add(&format!("k{i}"), &value);
            if reply.status == 200 {
                return false;
            }
            reply.failed(507, "disk_full");
            true
        })
        .unwrap();
    assert!((5..40).contains(&written), "{written}");
    for _ in 0..3 {
        client.add("one more", &value).failed(507, "disk_full");
        assert_eq!(client.get("k0").value().as_ref(), Some(&value));
        assert_eq!(client.get("one more").value(), None);
    }
    fs::remove_file(&ballast).unwrap();
    client.add("after", &value).succeeded();
    // Nothing of what was refused is in the log, and nothing else is missing.
    node.kill9();
    node.restart();
    node.wait_ready();
    let (_, keys, tombstones) = node.holdings();
    assert_eq!((keys, tombstones), (written + 1, 0));
    let mut client = node.client();
    for key in (0..written).map(|i| format!("k{i}")).chain(["after".to_owned()]) {
        assert_eq!(client.get(&key).value().as_ref(), Some(&value), "{key}");
    }
    // The file system goes before the directory that it is mounted in.
    let setup = node.setup().clone();
    drop(node);
    drop(disk);
    drop(setup);
}
