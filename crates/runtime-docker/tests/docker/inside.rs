//! What programs in a sandbox find, and what they are kept from.

use std::time::Duration;

use cloud_sandbox_model::{Limits, SandboxId, error::chain};
use cloud_sandbox_runtime::{INTERFACE, Runtime, RuntimeError, SandboxSpec};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    rig::{Rig, SOON, docker, name},
    setup::left_out,
};

async fn finds_its_own_things(runtime: &str) {
    let rig = Rig::new();
    let id = rig.create(runtime).await;
    let line = "id -u; hostname; cat /etc/hostname; \
                for f in /workspace /home/user /tmp /var/tmp /run /dev/shm; do test -d $f && echo $f; done; \
                cd /workspace && echo '#!/bin/sh' > run && echo 'echo works' >> run && chmod +x run && ./run; \
                touch /etc/x /usr/x /x 2>/dev/null || echo read-only";
    let (status, printed) = rig.run(id, line).await;
    let folders = "/workspace\n/home/user\n/tmp\n/var/tmp\n/run\n/dev/shm";
    assert_eq!((status, &*printed), (0, &*format!("1000\nsandbox\nsandbox\n{folders}\nworks\nread-only")), "{runtime}");
    let (_, resolver) = rig.run(id, "cat /etc/resolv.conf").await;
    assert_eq!(resolver, format!("nameserver {}", INTERFACE.gateway));
    let (_, full) = rig.run(id, "head -c 700000000 /dev/zero 2>/dev/null > /workspace/big || echo full").await;
    assert_eq!(full, "full", "{runtime}");
    rig.runtime.destroy(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_find_folders_of_their_own_and_a_bounded_disk() {
    if left_out() {
        return;
    }
    finds_its_own_things("docker+runc").await;
    finds_its_own_things("docker+runsc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_agent_may_use_the_socket_of_the_node() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let id = rig.create("docker+runc").await;
    let line = "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); \
                s.connect(\"/.cloud-sandbox/node.sock\"); s.send(b\"x\"); print(s.recv(1))'";
    let (_, printed) = timeout(SOON, rig.run(id, line)).await.unwrap();
    // closed without a word, after what was sent or before
    assert!(printed.ends_with("b''") || printed.contains("reset") || printed.contains("Broken pipe"), "{printed}");
    assert_eq!(rig.run(id, "true").await.0, 0, "the agent is let in after it");
    rig.runtime.destroy(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_change_and_are_counted() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let template = rig.prepared("docker+runc").await;
    let small = Limits { memory_bytes: 64 << 20, disk_bytes: 16 << 20, open_files: 128, ..Limits::DEFAULT };
    let id = rig.create_of(template, small).await;
    let hungry = "exec 2>/dev/null; python3 -c 'x = bytearray(100 << 20)'; echo $?; ulimit -n";
    assert_eq!(rig.run(id, hungry).await.1.lines().last(), Some("128"));
    let usage = rig.runtime.usage(id).await.unwrap();
    assert!(usage.oom_kills.is_some_and(|kills| kills > 0), "{usage:?}");
    assert!(usage.memory_bytes.is_some_and(|bytes| bytes < 64 << 20), "{usage:?}");
    assert!(usage.cpu_time.is_some_and(|time| time > Duration::ZERO) && usage.pids.is_some(), "{usage:?}");
    let larger = Limits { memory_bytes: 256 << 20, cpu_millis: 2000, ..small };
    rig.runtime.set_limits(id, larger).await.unwrap();
    assert_eq!(rig.run(id, hungry).await, (0, "0\n128".to_owned()));
    match rig.runtime.set_limits(id, Limits { open_files: 256, ..larger }).await {
        // it takes CAP_SYS_RESOURCE, which root need not have
        Err(RuntimeError::Unsupported(_)) => assert_eq!(rig.run(id, "ulimit -n").await.1, "128"),
        changed => {
            changed.unwrap();
            assert_eq!(rig.run(id, "ulimit -n").await.1, "256");
        }
    }
    let other_disk = Limits { disk_bytes: 32 << 20, ..larger };
    let refused = rig.runtime.set_limits(id, other_disk).await;
    assert!(matches!(refused, Err(RuntimeError::Unsupported(_))), "{refused:?}");
    rig.runtime.destroy(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_is_writable_where_the_template_says_so() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let mut template = rig.prepared("docker+runc").await;
    (template.writable_root, template.user) = (true, "0:0".into());
    let id = rig.create_of(template, Limits::DEFAULT).await;
    let (status, printed) = rig.run(id, "touch /usr/mine && touch /workspace/mine && id -u").await;
    assert_eq!((status, &*printed), (0, "0"));
    let changed = docker(&["diff", &name(id)]);
    assert!(changed.contains("A /usr/mine"), "{changed}");
    rig.runtime.destroy(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn interface_is_made_in_a_container_and_its_packets_are_the_nodes() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let id = rig.create("docker+runc").await;
    let mut packets = rig.runtime.attach_interface(id, INTERFACE).await.unwrap();
    let (_, table) = rig.run(id, "cat /proc/net/dev").await;
    assert!(table.contains("eth0:"), "{table}");
    let line = "python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                s.sendto(b\"hello\", (\"192.0.2.1\", 9))'";
    assert_eq!(rig.run(id, line).await, (0, String::new()));
    let mut packet = vec![0; 2000];
    let found = async {
        loop {
            let length = packets.read(&mut packet).await.unwrap();
            // IPv6 looks for routers meanwhile
            if packet[0] >> 4 == 4 && packet[..length].ends_with(b"hello") {
                return;
            }
        }
    };
    timeout(SOON, found).await.unwrap();
    rig.runtime.destroy(id).await.unwrap();
    let gvisor = rig.create("docker+runsc").await;
    let refused = rig.runtime.attach_interface(gvisor, INTERFACE).await.map(drop);
    assert!(matches!(refused, Err(RuntimeError::Unsupported(_))), "{refused:?}");
    rig.runtime.destroy(gvisor).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_ends_at_once_says_why() {
    if left_out() {
        return;
    }
    let told = |agent: &'static [u8]| async move {
        let rig = Rig::of_agent(agent);
        let template = rig.prepared("docker+runc").await;
        let spec = SandboxSpec { template, limits: Limits::DEFAULT };
        let error = rig.runtime.create(SandboxId::generate(), &spec).await.unwrap_err();
        rig.assert_nothing_is_left();
        chain(&error)
    };
    let foreign = told(b"\x7fELF no program of this machine").await;
    assert!(foreign.contains("exec format error"), "{foreign}");
    let complaining = told(b"#!/bin/sh\necho it is too hot >&2\nexit 3\n").await;
    assert!(complaining.contains("exit code 3") && complaining.contains("it is too hot"), "{complaining}");
}
