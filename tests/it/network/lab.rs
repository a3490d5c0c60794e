//! A network for five nodes: a bridge in a network namespace, and a namespace for each node with a
//! cable (a veth pair) to the bridge. The test process has a cable too: it is where clients live.
//!
//! Every node knows its neighbours by fixed entries instead of ARP. So packets in one direction
//! between two nodes are dropped, silently as by an unplugged switch, by an entry with a hardware
//! address that nobody has. That needs nothing of the kernel but namespaces, veth and bridge: no
//! packet filter, no traffic control. Names carry the process id and addresses are taken from a
//! range for measurements (RFC 2544), so labs of several processes do not meet.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::super::process::node::{Node, Setup};

pub const NODES: usize = 5;
const GRPC_PORT: u16 = 50071;
const HTTP_PORT: u16 = 3000;

/// 198.18.0.0/15, in parts of eight addresses: five nodes and the clients.
const RANGE: u32 = 0xC612_0000;
const PARTS: u32 = 1 << 14;
const PREFIX: u32 = 29;
/// The hardware address of nobody.
const NOBODY: &str = "02:4c:00:00:de:ad";

/// The network, until dropped.
pub struct Lab {
    name: String,
    base: u32,
    made: Vec<String>,
}

impl Lab {
    /// Builds the network, or says why that is not possible here. What was built is removed again.
    pub fn build() -> Result<Self, String> {
        let owner = fs::metadata("/proc/self").map_err(|error| error.to_string())?.uid();
        if owner != 0 {
            return Err("not permitted to anyone but root".into());
        }
        let process = std::process::id();
        let taken = ip(&["-o", "-4", "address"])?;
        let base = (0..PARTS)
            .map(|i| RANGE + (process.wrapping_add(i) % PARTS) * 8)
            .find(|base| !taken.contains(&format!(" {}/", Ipv4Addr::from(base + 6))))
            .ok_or("no addresses left")?;
        let mut lab = Self { name: format!("lally{process}"), base, made: Vec::new() };
        lab.lay_cables()?;
        Ok(lab)
    }

    fn lay_cables(&mut self) -> Result<(), String> {
        let hub = format!("{}-hub", self.name);
        self.add_namespace(&hub)?;
        batch(&hub, &["link add hub type bridge", "link set hub up"])?;
        for node in 0..NODES {
            let namespace = self.namespace(node);
            self.add_namespace(&namespace)?;
            let (port, hardware) = (port(node), hardware(node));
            let pair = format!(
                "link add {port} type veth peer name eth0 address {hardware} netns {namespace}"
            );
            let plug = format!("link set {port} master hub up");
            batch(&hub, &[&pair, &plug])?;
            let mut inside = vec![
                "link set lo up".to_owned(),
                format!("address add {}/{PREFIX} dev eth0", self.address(node)),
                "link set eth0 up".to_owned(),
            ];
            let others = (0..NODES).filter(|other| *other != node);
            inside.extend(others.map(|other| self.neighbour(other, true)));
            batch(&namespace, &inside)?;
        }
        // The name of a device has at most 15 bytes; it goes with its other end, the hub's.
        let clients = format!("l{}c", std::process::id());
        ip(&["link", "add", &clients, "type", "veth", "peer", "name", "clients", "netns", &hub])?;
        batch(&hub, &["link set clients master hub up"])?;
        let address = format!("{}/{PREFIX}", Ipv4Addr::from(self.base + 6));
        ip(&["address", "add", &address, "dev", &clients])?;
        ip(&["link", "set", &clients, "up"])?;
        // It mounts things of its own, which not every container may.
        ip(&["netns", "exec", &hub, "true"])?;
        Ok(())
    }

    fn add_namespace(&mut self, name: &str) -> Result<(), String> {
        ip(&["netns", "add", name])?;
        self.made.push(name.to_owned());
        Ok(())
    }

    pub fn address(&self, node: usize) -> Ipv4Addr {
        let offset = u32::try_from(node).unwrap() + 1;
        Ipv4Addr::from(self.base + offset)
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn neighbour(&self, node: usize, reachable: bool) -> String {
        let hardware = if reachable { hardware(node) } else { NOBODY.to_owned() };
        format!("neigh replace {} lladdr {hardware} dev eth0 nud permanent", self.address(node))
    }

    /// How this node is run: bound to its address; every other one is its seed, but it founds the
    /// cluster if it is the first.
    pub fn setup(&self, node: usize, args: &[&str]) -> Setup {
        let address = self.address(node).to_string();
        let mut setup = Setup::new()
            .under(["ip", "netns", "exec", &self.namespace(node)])
            .args(["--bind", &address, "--advertise-addr", &address, "--insecure"])
            .args(args)
            .http_port(Some(HTTP_PORT))
            .grpc_port(Some(GRPC_PORT));
        if node > 0 {
            setup = self.seeded(setup, node);
        }
        setup
    }

    /// With all other nodes as seeds.
    pub fn seeded(&self, setup: Setup, node: usize) -> Setup {
        let others = (0..NODES).filter(|other| *other != node);
        others.fold(setup.without_seeds(), |setup, other| {
            setup.seed(format!("{}:{GRPC_PORT}", self.address(other)))
        })
    }

    /// Starts all nodes; returns when every one is ready.
    pub fn start(&self, args: &[&str]) -> Vec<Node> {
        let mut nodes = vec![self.setup(0, args).start_ready()];
        nodes.extend((1..NODES).map(|node| self.setup(node, args).start()));
        nodes.iter().for_each(Node::wait_ready);
        nodes
    }

    /// From now on `from` reaches exactly those nodes for which `reaches(from, to)`.
    pub fn connect(&self, reaches: impl Fn(usize, usize) -> bool) {
        for from in 0..NODES {
            let others = (0..NODES).filter(|to| *to != from);
            let entries: Vec<_> = others.map(|to| self.neighbour(to, reaches(from, to))).collect();
            batch(&self.namespace(from), &entries).unwrap();
        }
    }

    /// Takes the cable of a node out of the bridge, or puts it back: clients notice too.
    pub fn plug(&self, node: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        batch(&format!("{}-hub", self.name), &[format!("link set {} {state}", port(node))])
            .unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.made {
            if let Err(error) = ip(&["netns", "delete", namespace]) {
                eprintln!("the network namespace {namespace} is left behind: {error}");
            }
        }
    }
}

fn port(node: usize) -> String {
    format!("node{node}")
}

fn hardware(node: usize) -> String {
    format!("02:4c:00:00:00:{:02x}", node + 1)
}

fn ip(args: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Several commands of `ip` in a namespace, by one process.
fn batch<S: AsRef<str>>(namespace: &str, commands: &[S]) -> Result<(), String> {
    let lines: Vec<_> = commands.iter().map(AsRef::as_ref).collect();
    let lines = lines.join("\n") + "\n";
    let mut child = Command::new("ip")
        .args(["-netns", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("ip: {error}"))?;
    let written = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let output = child.wait_with_output().map_err(|error| format!("ip: {error}"))?;
    if written.is_ok() && output.status.success() {
        return Ok(());
    }
    Err(format!("ip in {namespace}: {lines}{}", String::from_utf8_lossy(&output.stderr).trim()))
}
