//! An ext4 file system in a file, whose power can be cut.
//!
//! `FS_IOC_SHUTDOWN` makes a mounted file system stop at once: what was not written to the device
//! stays unwritten for ever, as if the power had gone. It needs root and loop devices; elsewhere tests
//! that need it are skipped and say so.
//!
//! What it cannot show: a device that reorders or tears what it was given, or that lies about what it
//! has forced. The device here is a file in the memory of a system that stays up.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::super::process::wait::{PATIENCE, eventually};

/// The size of the image, which takes up what is written to it.
const BYTES: u64 = 1 << 30;

/// How the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// What the journal had in memory is lost.
    Hard,
    /// The journal is written first: sizes and names are ahead of what was forced.
    AfterJournal,
}

/// Mounted until dropped.
pub struct Disk {
    image: PathBuf,
    pub root: PathBuf,
}

impl Disk {
    /// Makes one in this directory and mounts it there.
    pub fn mount(dir: &Path) -> Option<Self> {
        let (image, root) = (dir.join("image"), dir.join("disk"));
        File::create(&image).unwrap().set_len(BYTES).unwrap();
        std::fs::create_dir(&root).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", &image.display().to_string()]);
        match made.and_then(|()| attach(&image, &root)) {
            Ok(()) => Some(Self { image, root }),
            Err(why) => {
                eprintln!(
                    "SKIPPED: no file system can be mounted from a file here (not root?): {why}"
                );
                None
            }
        }
    }

    /// What cuts the power of it; made beforehand, so that the cut takes no time.
    pub fn switch(&self) -> Switch {
        // FS_IOC_SHUTDOWN is _IOR('X', 125, __u32), linux/fs.h; perl is part of every Debian.
        let script = "open(F, '<', $ARGV[0]) or die $!; $| = 1; print \"ready\\n\"; \
                      ioctl(F, 0x8004587d, pack('I', <STDIN>)) or die $!; print \"done\\n\";";
        let mut command = Command::new("perl");
        command.args(["-e", script, &self.root.display().to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut switch = Switch { child, says };
        switch.hear("ready");
        switch
    }

    /// The power is back. Nobody may have a file open on it.
    pub fn power_on(&self) {
        self.mount_again_after(|| {});
    }

    /// Gives a file on it, which nobody has open, another length than it had, without touching its
    /// data: the length that a power cut may leave.
    pub fn set_length(&self, file: &Path, bytes: u64) {
        let name = Path::new("/").join(file.strip_prefix(&self.root).unwrap());
        let request = format!("set_inode_field {} size {bytes}", name.display());
        let image = self.image.display().to_string();
        self.mount_again_after(|| run("debugfs", &["-w", "-R", &request, &image]).unwrap());
    }

    fn mount_again_after(&self, change: impl FnOnce()) {
        let root = self.root.display().to_string();
        eventually("the disk is unmounted", PATIENCE, || run("umount", &[&root]));
        change();
        attach(&self.image, &self.root).unwrap();
    }
}

/// Cuts the power of a disk, once.
pub struct Switch {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Switch {
    /// Nothing reaches the disk any more when this returns. What a server is told meanwhile is nothing
    /// to go by: ext4 was seen to say that it has forced what is gone.
    pub fn cut(mut self, how: Cut) {
        let flag = if how == Cut::Hard { b"2\n" } else { b"1\n" };
        self.child.stdin.take().unwrap().write_all(flag).unwrap();
        self.hear("done");
    }

    fn hear(&mut self, word: &str) {
        assert_eq!(self.says.next().unwrap().unwrap(), word);
    }
}

impl Drop for Switch {
    /// It keeps the root of the disk open.
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the process of a test that failed may still be on it.
        if let Err(why) = run("umount", &["-l", &self.root.display().to_string()]) {
            eprintln!("{} is still mounted: {why}", self.root.display());
        }
    }
}

fn attach(image: &Path, root: &Path) -> Result<(), String> {
    let (image, root) = (image.display().to_string(), root.display().to_string());
    run("mount", &["-t", "ext4", "-o", "loop", &image, &root])
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", said.trim())) }
}

#[test]
fn what_was_not_forced_is_gone_when_the_power_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path()) else { return };
    for (how, name) in [(Cut::Hard, "a"), (Cut::AfterJournal, "b")] {
        let (forced, unforced) = (disk.root.join(name), disk.root.join(format!("{name}-unforced")));
        std::fs::write(&forced, "forced").unwrap();
        File::open(&forced).unwrap().sync_all().unwrap();
        File::open(&disk.root).unwrap().sync_all().unwrap();
        std::fs::write(&unforced, "unforced").unwrap();
        disk.switch().cut(how);
        assert!(std::fs::write(disk.root.join("later"), "later").is_err());
        disk.power_on();
        assert_eq!(std::fs::read_to_string(&forced).unwrap(), "forced");
        let left = std::fs::read_to_string(&unforced);
        assert!(left.as_ref().map_or(true, |text| text != "unforced"), "{how:?}: {left:?}");
    }
}
