//! Who is reached.

use crate::world::*;

#[tokio::test]
async fn listed_host_is_reached_and_others_are_told_why_not() {
    let world = World::with_host(&["a.example", "*.b.example:8080"], &[]).await;
    world.hosts.name("x.b.example", &[&["203.0.113.1"]]);
    assert_eq!(status(&world.get("http://a.example/").await), 200);
    assert_eq!(status(&world.get("http://X.b.example:8080/").await), 200);
    for (uri, reason) in [
        ("http://other.example/", "not_in_list"),
        ("http://a.example:8080/", "port_not_allowed"),
        ("http://x.b.example/", "port_not_allowed"),
        ("http://203.0.113.1/", "not_in_list"),
        ("http://a.example.other.example/", "not_in_list"),
    ] {
        let answer = world.get(uri).await;
        assert_eq!(status(&answer), 403, "{uri}");
        assert!(answer.contains(&format!("x-sandbox-network: reason={reason}; host=\"")), "{answer}");
        assert!(answer.contains(&format!("({reason})\n")), "{answer}");
    }
    let traffic = world.traffic();
    assert_eq!((traffic.allowed, traffic.denied), (2, 5));
    // a query would have told its server what the sandbox put into the name
    assert_eq!(world.hosts.resolved(), ["a.example", "x.b.example"]);
    world.end().await;
}

#[tokio::test]
async fn refused_tunnel_says_why_in_its_status_line_its_header_and_its_body() {
    let world = World::new(&["*:*"], &["*.evil.example"]).await;
    let (head, mut stream) = world.tunnel("a.evil.example:443").await;
    let line = head.lines().next().unwrap();
    assert!(line.starts_with("HTTP/1.1 403 Forbidden by the network policy"), "{line}");
    assert!(line.contains("a.evil.example:443") && line.contains("`*.evil.example`"), "{line}");
    let fact = "x-sandbox-network: reason=denied_by_list; host=\"a.evil.example\"; port=443; rule=\"*.evil.example\"";
    assert!(head.contains(fact), "{head}");
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
    let mut body = vec![0; length];
    soon(tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body)).await.unwrap();
    assert!(String::from_utf8(body).unwrap().contains("denied by the entry `*.evil.example`"));
    world.end().await;
}

#[tokio::test]
async fn deny_wins_over_allow_by_name_and_by_address() {
    let world = World::with_host(&["*:*"], &["denied.example", "203.0.113.64/26"]).await;
    world.hosts.name("denied.example", &[&["203.0.113.1"]]);
    world.hosts.name("b.example", &[&["203.0.113.65"]]);
    assert_eq!(status(&world.get("http://a.example/").await), 200);
    for uri in ["http://denied.example/", "http://b.example/", "http://203.0.113.66/", "http://[::ffff:203.0.113.66]/"]
    {
        let answer = world.get(uri).await;
        assert!(status(&answer) == 403 && answer.contains("reason=denied_by_list"), "{uri}: {answer}");
    }
    assert_eq!(world.hosts.connected(), ["203.0.113.1:80"]);
    world.end().await;
}

#[tokio::test]
async fn name_whose_second_answer_is_private_is_refused_the_second_time() {
    let world = World::with_host(&["rebind.example:*", "*"], &[]).await;
    world.hosts.name("rebind.example", &[&["203.0.113.1"], &["10.0.0.1"], &["127.0.0.1"], &["::ffff:169.254.169.254"]]);
    for (expected, reason) in [(200, ""), (403, "private"), (403, "never_reachable"), (403, "never_reachable")] {
        let answer = world.get("http://rebind.example/").await;
        assert_eq!(status(&answer), expected);
        assert!(answer.contains(reason), "{answer}");
    }
    assert_eq!(world.hosts.connected(), ["203.0.113.1:80"]);
    world.end().await;
}

#[tokio::test]
async fn of_many_addresses_only_those_that_are_allowed_are_connected() {
    let world = World::with_host(&["many.example"], &[]).await;
    world.hosts.name("many.example", &[&["127.0.0.1", "fd00::1", "203.0.113.9", "203.0.113.1", "10.0.0.1"]]);
    assert_eq!(status(&world.get("http://many.example/").await), 200);
    // the first of the two refuses
    assert_eq!(world.hosts.connected(), ["203.0.113.9:80", "203.0.113.1:80"]);
    world.end().await;
}

#[tokio::test]
async fn odd_notations_of_forbidden_addresses_end_at_the_address() {
    let world = World::new(&["*:*"], &[]).await;
    for name in ["0x7f.1", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1.nip.io"] {
        world.hosts.name(name, &[&["127.0.0.1"]]);
    }
    world.hosts.name("imds.example", &[&["169.254.169.254"]]);
    for host in [
        "0x7f.1",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "127.0.0.1.nip.io",
        "127.0.0.1",
        "127.0.0.1.",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "imds.example",
        "metadata.google.internal",
        "METADATA",
        "localhost",
        "100.100.100.200",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "224.0.0.1",
        "203.0.113.200",
    ] {
        for target in [format!("{host}:80"), format!("{host}:443")] {
            let (head, _) = world.tunnel(&target).await;
            assert!(status(&head) == 403 && head.contains("reason=never_reachable"), "{target}: {head}");
        }
        let answer = world.get(&format!("http://{host}/")).await;
        assert!(status(&answer) == 403 && answer.contains("reason=never_reachable"), "{host}: {answer}");
    }
    assert!(world.hosts.connected().is_empty());
    world.end().await;
}

#[tokio::test]
async fn redirect_to_a_metadata_service_is_decided_when_it_is_followed() {
    let world = World::new(&["*:*"], &[]).await;
    world.hosts.name("redirect.example", &[&["203.0.113.1"]]);
    let redirecting = host(|mut stream| async move {
        read_head(&mut stream).await;
        let answer = "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n";
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
    });
    world.hosts.place("203.0.113.1", redirecting.await);
    let answer = world.get("http://redirect.example/").await;
    assert_eq!(status(&answer), 302);
    let location = answer.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    assert_eq!(status(&world.get(location).await), 403);
    assert_eq!(world.hosts.connected(), ["203.0.113.1:80"]);
    world.end().await;
}

#[tokio::test]
async fn tunnel_to_a_port_that_is_not_allowed_is_refused() {
    let world = World::with_echo(&["*"], &[]).await;
    for port in [22, 25, 3306, 6379, 8080] {
        let (head, _) = world.tunnel(&format!("a.example:{port}")).await;
        assert!(status(&head) == 403 && head.contains("reason=port_not_allowed"), "{port}: {head}");
    }
    assert!(world.hosts.connected().is_empty());
    world.end().await;
}

#[tokio::test]
async fn host_that_cannot_be_resolved_or_reached_is_told_apart_from_one_that_is_refused() {
    let world = World::new(&["*"], &[]).await;
    world.hosts.name("down.example", &[&["203.0.113.9"]]);
    world.hosts.name("empty.example", &[&[]]);
    for (host, reason) in
        [("nowhere.example", "unresolved"), ("empty.example", "unresolved"), ("down.example", "unreachable")]
    {
        let (head, _) = world.tunnel(&format!("{host}:443")).await;
        assert!(
            status(&head) == 502 && head.contains(&format!("reason={reason}; host=\"{host}\"; port=443")),
            "{head}"
        );
    }
    let traffic = world.traffic();
    assert_eq!((traffic.allowed, traffic.denied), (0, 0));
    world.end().await;
}
