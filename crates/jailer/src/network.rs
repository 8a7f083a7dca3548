//! What is made in the network of a sandbox that lives.
//!
//! The jailer is in the sandbox's user and network namespaces for that moment, and in no other of them: no process of the
//! sandbox can name it, nor has a capability to trace it with.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use cloud_sandbox_jailer::{Interface, Reply, TUN};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};

use crate::{
    control::Control,
    fault::{Fault, Step},
};

/// Listens on `port`, or on any other where the sandbox has that already.
pub fn listen(control: &Control, process: &OwnedFd, port: u16) -> Result<(), Fault> {
    enter(process)?;
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
        bound => bound,
    };
    let listener = listener.step(|| format!("listen on port {port}"))?;
    let port = listener.local_addr().step(|| "read the port".into())?.port();
    control.hand_over(&Reply::Made { port }, &listener);
    Ok(())
}

/// Makes an interface that lives as long as the descriptor of its packets.
pub fn attach(control: &Control, process: &OwnedFd, interface: &Interface) -> Result<(), Fault> {
    enter(process)?;
    // the device is the host's, the interface that it makes belongs to the network that it is opened in
    let packets = OpenOptions::new().read(true).write(true).open(TUN).step(|| format!("open {TUN}"))?;
    create(&packets, interface).step(|| format!("make the interface {}", interface.name))?;
    configure(interface).step(|| format!("configure the interface {}", interface.name))?;
    control.hand_over(&Reply::Made { port: 0 }, &packets);
    Ok(())
}

fn enter(process: &OwnedFd) -> Result<(), Fault> {
    let both = setns(process, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    let entered = match both {
        // nobody enters the user namespace that they are in already: a container's, which has none of its own
        Err(Errno::EINVAL) => setns(process, CloneFlags::CLONE_NEWNET),
        both => both,
    };
    entered.step(|| "enter the sandbox's network".into())
}

fn create(packets: &File, interface: &Interface) -> io::Result<()> {
    let mut request = request(interface);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    call(packets, libc::TUNSETIFF, &raw const request)
}

fn configure(interface: &Interface) -> io::Result<()> {
    // any socket of the namespace will do for the requests
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let netmask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(interface.prefix)).unwrap_or(0));
    for (number, address) in [(libc::SIOCSIFADDR, interface.address), (libc::SIOCSIFNETMASK, netmask)] {
        let mut request = request(interface);
        request.ifr_ifru.ifru_addr = address_of(address);
        call(&socket, number, &raw const request)?;
    }
    let mut mtu = request(interface);
    mtu.ifr_ifru.ifru_mtu = interface.mtu.into();
    call(&socket, libc::SIOCSIFMTU, &raw const mtu)?;
    let mut up = request(interface);
    up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    call(&socket, libc::SIOCSIFFLAGS, &raw const up)?;
    // SAFETY: all-zero is a valid rtentry.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address_of(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address_of(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address_of(interface.gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    call(&socket, libc::SIOCADDRT, &raw const route)
}

/// A request about an interface, whose name is cut where it is too long for one.
fn request(interface: &Interface) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn address_of(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are the same sixteen bytes, of which sockaddr asks nothing but the family.
    unsafe { std::mem::transmute(address) }
}

fn call<T>(of: &impl AsRawFd, number: libc::Ioctl, argument: *const T) -> io::Result<()> {
    // SAFETY: the argument is what this request reads, whole and alive.
    let done = unsafe { libc::ioctl(of.as_raw_fd(), number, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
