//! Where this node listens, and which addresses it gives to others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};

use crate::adapters::config::{AdvertiseAddr, Config, SeedAddr};

use super::errors::RunError;

/// The two open ports, and how others name them.
pub(super) struct Addresses {
    pub(super) http: TcpListener,
    pub(super) grpc: TcpListener,
    /// Where this node listens, with the real ports.
    pub(super) http_bound: SocketAddr,
    pub(super) grpc_bound: SocketAddr,
    /// `HOST:PORT` for clients.
    pub(super) http_addr: String,
    /// `HOST:PORT` for peers.
    pub(super) grpc_addr: String,
}

impl Addresses {
    /// Opens both ports.
    pub(super) fn open(config: &Config) -> Result<Self, RunError> {
        refuse_unreachable_seeds(config)?;
        let (http, http_bound) = listen(config.bind, config.http_port, "--http-port")?;
        let (grpc, grpc_bound) = listen(config.bind, config.grpc_port, "--grpc-port")?;
        let advertised = config.advertise_addr.clone().unwrap_or_else(|| AdvertiseAddr {
            host: host_for_others(config).to_string(),
            port: None,
        });
        let grpc_addr = advertised.with_port(grpc_bound.port());
        let for_clients = AdvertiseAddr { port: None, ..advertised };
        let http_addr = for_clients.with_port(http_bound.port());
        Ok(Self { http, grpc, http_bound, grpc_bound, http_addr, grpc_addr })
    }
}

/// A node on the loopback cannot be reached by members elsewhere: it would join a cluster that
/// cannot talk back. A name that does not resolve yet is let through; it may.
fn refuse_unreachable_seeds(config: &Config) -> Result<(), RunError> {
    if !config.bind.to_canonical().is_loopback() {
        return Ok(());
    }
    for seed in &config.seed_nodes {
        let resolved = resolve(seed);
        if !resolved.is_empty() && resolved.iter().all(|addr| !addr.ip().is_loopback()) {
            return Err(RunError::Usage(format!(
                "seed_node {seed} is on another host, which cannot reach this node on {}; add --bind with an address that it can reach, or --bind 0.0.0.0",
                config.bind
            )));
        }
    }
    Ok(())
}

/// Connections that may wait to be accepted. The kernel's own bound (`somaxconn`) holds, too.
const BACKLOG: i32 = 4_096;

fn listen(
    ip: IpAddr,
    port: u16,
    flag: &'static str,
) -> Result<(TcpListener, SocketAddr), RunError> {
    let addr = SocketAddr::new(ip, port);
    let failed = |error| RunError::Listen { addr, flag, error };
    let listener = TcpListener::bind(addr).map_err(failed)?;
    // Again, for a longer queue than the 128 of the standard library: of more connections than that at
    // a moment the kernel drops some, and their clients try again after a second.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    let real = listener.local_addr().map_err(failed)?;
    Ok((listener, real))
}

/// The bind address, unless it is a wildcard: then the local address of the route to a seed, or
/// else of the default route.
fn host_for_others(config: &Config) -> IpAddr {
    if config.bind.is_unspecified() {
        let documentation_net = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
        let seeds = config.seed_nodes.iter().flat_map(resolve);
        // Nobody listens on the other family's addresses. (`::` takes both.)
        let listening = |target: &SocketAddr| config.bind.is_ipv6() || target.is_ipv4();
        let mut routed = seeds
            .chain([documentation_net])
            .filter(listening)
            .filter_map(|target| local_address_towards(target).ok());
        routed.find(|ip| !ip.is_unspecified()).unwrap_or_else(|| {
            tracing::warn!("no route to other hosts: advertising 127.0.0.1; see --advertise-addr");
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        })
    } else {
        config.bind
    }
}

/// The addresses of a seed now; none if its name does not resolve.
fn resolve(seed: &SeedAddr) -> Vec<SocketAddr> {
    let addrs = (seed.host.as_str(), seed.port).to_socket_addrs();
    addrs.map(Iterator::collect).unwrap_or_default()
}

/// Asks the routing table; a UDP connect sends nothing.
fn local_address_towards(target: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_address_towards_the_loopback_is_the_loopback() {
        let towards = local_address_towards((Ipv4Addr::LOCALHOST, 9).into()).unwrap();
        assert!(towards.is_loopback());
    }

    #[test]
    fn a_taken_port_is_named_with_the_flag_that_changes_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = listen(Ipv4Addr::LOCALHOST.into(), port, "--http-port").unwrap_err();
        assert!(refused.to_string().contains("--http-port"), "{refused}");
        assert_eq!(refused.exit_code(), 1);
    }
}
