mod properties;

use super::*;

fn strings(entries: &[&str]) -> Vec<String> {
    entries.iter().map(|entry| (*entry).to_owned()).collect()
}

fn parse(mode: NetworkMode, allow: &[&str], deny: &[&str]) -> Result<NetworkPolicy> {
    NetworkPolicy::parse("network", Some(mode), &strings(allow), &strings(deny))
}

fn egress(allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    parse(NetworkMode::Egress, allow, deny).unwrap()
}

fn open(allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    parse(NetworkMode::Open, allow, deny).unwrap()
}

/// What is decided about a name that resolves to `address`, or about an address.
fn decided(policy: &NetworkPolicy, host: &str, address: &str, port: u16) -> &'static str {
    let own = HostAddresses::from_iter([IpAddr::from([8, 8, 4, 4])]);
    let first = policy.decide_name(host, port, &own);
    let decision = policy.decide_address(host, address.parse().unwrap(), port, &own);
    // what is refused before a name is resolved is refused for each of its addresses
    assert!(first.is_allowed() || first == decision, "{host} {address} {port}: {first:?}, {decision:?}");
    decision.reason()
}

fn decided_of_address(policy: &NetworkPolicy, address: &str, port: u16) -> &'static str {
    decided(policy, address, address, port)
}

/// The rule that an entry of `allow` breaks in mode `egress`.
fn broken(entry: &str) -> String {
    let error = parse(NetworkMode::Egress, &[entry], &[]).expect_err(entry);
    let [violation] = error.violations() else { panic!("{entry}: {error}") };
    assert_eq!(violation.field, "network.allow[0]");
    violation.rule.clone()
}

#[test]
fn name_is_allowed_exactly_and_on_the_ports_of_the_web() {
    let policy = egress(&["PyPI.org."], &[]);
    for (host, port, expected) in [
        ("pypi.org", 443, "allowed"),
        ("pypi.org", 80, "allowed"),
        ("PYPI.ORG.", 443, "allowed"),
        ("pypi.org", 22, "port_not_allowed"),
        ("pypi.org", 0, "port_not_allowed"),
        ("test.pypi.org", 443, "not_in_list"),
        ("evilpypi.org", 443, "not_in_list"),
        ("pypi.org.evil.example", 443, "not_in_list"),
        ("pypi.org..", 443, "not_in_list"),
        ("", 443, "not_in_list"),
    ] {
        assert_eq!(decided(&policy, host, "203.0.113.7", port), expected, "{host}:{port}");
    }
}

#[test]
fn wildcard_allows_a_name_and_all_below_it() {
    let policy = egress(&["*.pythonhosted.org:443"], &[]);
    for (host, expected) in [
        ("pythonhosted.org", "allowed"),
        ("files.pythonhosted.org", "allowed"),
        ("a.b.pythonhosted.org", "allowed"),
        ("notpythonhosted.org", "not_in_list"),
        ("pythonhosted.org.example", "not_in_list"),
    ] {
        assert_eq!(decided(&policy, host, "203.0.113.7", 443), expected, "{host}");
    }
    assert_eq!(decided(&policy, "files.pythonhosted.org", "203.0.113.7", 80), "port_not_allowed");
}

#[test]
fn ports_are_one_or_every() {
    let policy = egress(&["git.example:22", "git.example:9418", "any.example:*"], &[]);
    for (host, port, expected) in [
        ("git.example", 22, "allowed"),
        ("git.example", 9418, "allowed"),
        ("git.example", 443, "port_not_allowed"),
        ("any.example", 1, "allowed"),
        ("any.example", 65535, "allowed"),
        ("any.example", 0, "port_not_allowed"),
    ] {
        assert_eq!(decided(&policy, host, "203.0.113.7", port), expected, "{host}:{port}");
    }
}

#[test]
fn ranges_allow_addresses_and_no_names() {
    let policy = egress(&["203.0.113.0/24", "[2001:db8::/32]:8443"], &[]);
    assert_eq!(decided_of_address(&policy, "203.0.113.255", 443), "allowed");
    assert_eq!(decided_of_address(&policy, "203.0.114.0", 443), "not_in_list");
    assert_eq!(decided_of_address(&policy, "::ffff:203.0.113.9", 443), "allowed");
    assert_eq!(decided(&policy, "[2001:db8::9]", "2001:db8::9", 8443), "allowed");
    assert_eq!(decided_of_address(&policy, "2001:db8::9", 443), "port_not_allowed");
    // resolving a name that is not allowed would tell its server whatever is in it
    assert_eq!(decided(&policy, "secret.example", "203.0.113.9", 443), "not_in_list");
}

#[test]
fn star_allows_public_hosts_alone() {
    let policy = egress(&["*"], &[]);
    assert_eq!(decided(&policy, "anything.example", "203.0.113.9", 443), "allowed");
    assert_eq!(decided(&policy, "anything.example", "203.0.113.9", 25), "port_not_allowed");
    assert_eq!(decided_of_address(&policy, "2001:db8::1", 443), "allowed");
    for address in
        ["10.0.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
    {
        assert_eq!(decided_of_address(&policy, address, 443), "private", "{address}");
    }
}

#[test]
fn private_address_needs_an_entry_of_its_own_beside_that_of_its_name() {
    let named = egress(&["db.internal:5432"], &[]);
    assert_eq!(decided(&named, "db.internal", "10.1.2.3", 5432), "private");
    let both = egress(&["db.internal:5432", "10.1.0.0/16:5432"], &[]);
    assert_eq!(decided(&both, "db.internal", "10.1.2.3", 5432), "allowed");
    assert_eq!(decided(&both, "db.internal", "10.2.2.3", 5432), "private");
    assert_eq!(decided(&both, "db.internal", "203.0.113.9", 5432), "allowed");
    let other_port = egress(&["db.internal:5432", "10.1.0.0/16"], &[]);
    assert_eq!(decided(&other_port, "db.internal", "10.1.2.3", 5432), "port_not_allowed");
}

#[test]
fn deny_wins_by_name_by_address_and_by_port() {
    let policy = egress(&["*:*"], &["*.evil.example", "198.51.100.0/24", "203.0.113.9:25", "*:23"]);
    for (host, address, port, expected) in [
        ("evil.example", "203.0.113.1", 443, "denied_by_list"),
        ("a.evil.example", "203.0.113.1", 8080, "denied_by_list"),
        ("good.example", "198.51.100.7", 443, "denied_by_list"),
        ("good.example", "::ffff:198.51.100.7", 443, "denied_by_list"),
        ("good.example", "64:ff9b::198.51.100.7", 443, "denied_by_list"),
        ("good.example", "203.0.113.9", 25, "denied_by_list"),
        ("good.example", "203.0.113.9", 443, "allowed"),
        ("good.example", "203.0.113.8", 23, "denied_by_list"),
    ] {
        assert_eq!(decided(&policy, host, address, port), expected, "{host} {address} {port}");
    }
    let decision = policy.decide_name("a.evil.example", 443, &HostAddresses::default());
    assert_eq!(decision.to_string(), "denied by the entry `*.evil.example`");
}

#[test]
fn name_that_resolves_to_what_can_never_be_reached_is_refused() {
    let policy = egress(&["*:*", "rebind.example"], &[]);
    for address in [
        "127.0.0.1",
        "127.255.0.3",
        "::1",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "224.0.0.1",
        "239.255.255.255",
        "ff02::1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.0.192",
        "198.18.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::",
        "::ffff:0:127.0.0.1",
        "100::1",
        "4000::1",
        "8.8.4.4",
        "::ffff:8.8.4.4",
        "64:ff9b::8.8.4.4",
    ] {
        assert_eq!(decided(&policy, "rebind.example", address, 443), "never_reachable", "{address}");
        assert_eq!(decided_of_address(&policy, address, 443), "never_reachable", "{address}");
    }
}

#[test]
fn names_of_metadata_services_are_refused_without_being_resolved() {
    let policy = egress(&["*:*", "*.internal"], &[]);
    for name in [
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "instance-data",
        "localhost",
        "x.localhost",
    ] {
        let decision = policy.decide_name(name, 80, &HostAddresses::default());
        assert_eq!(decision.reason(), "never_reachable", "{name}");
    }
    assert!(policy.decide_name("db.internal", 80, &HostAddresses::default()).is_allowed());
}

#[test]
fn odd_notations_of_addresses_are_names_until_they_are_resolved() {
    let listed = egress(&["pypi.org"], &[]);
    let all = egress(&["*:*"], &[]);
    for host in ["0x7f.1", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1.", "[::1", "::1%lo"] {
        assert_eq!(decided(&listed, host, "127.0.0.1", 80), "not_in_list", "{host}");
        assert_eq!(decided(&all, host, "127.0.0.1", 80), "never_reachable", "{host}");
    }
}

#[test]
fn open_reaches_public_addresses_and_private_ones_that_are_named() {
    let policy = open(&["10.1.0.0/16:5432"], &["203.0.113.0/24", "*:25"]);
    for (address, port, expected) in [
        ("198.51.100.1", 12345, "allowed"),
        ("2001:db8::1", 443, "allowed"),
        ("198.51.100.1", 25, "denied_by_list"),
        ("203.0.113.1", 443, "denied_by_list"),
        ("10.1.2.3", 5432, "allowed"),
        ("10.1.2.3", 443, "port_not_allowed"),
        ("10.2.2.3", 5432, "private"),
        ("127.0.0.1", 443, "never_reachable"),
        ("169.254.169.254", 80, "never_reachable"),
        ("8.8.4.4", 53, "never_reachable"),
        ("198.51.100.1", 0, "port_not_allowed"),
    ] {
        assert_eq!(decided_of_address(&policy, address, port), expected, "{address}:{port}");
    }
    assert_eq!(decided(&policy, "a.example", "198.51.100.1", 443), "allowed");
}

#[test]
fn nothing_is_reached_without_a_network() {
    let policy = NetworkPolicy::default();
    assert_eq!(policy.mode(), NetworkMode::None);
    assert_eq!(decided(&policy, "pypi.org", "203.0.113.1", 443), "mode_none");
    assert_eq!(decided_of_address(&policy, "203.0.113.1", 443), "mode_none");
}

#[test]
fn entries_that_are_none_are_named_with_the_rule() {
    let long_label = format!("{}.example", "a".repeat(64));
    let long_name = vec!["a".repeat(60); 5].join(".");
    for (entry, rule) in [
        ("", "must not be empty"),
        ("münchen.example", "punycode"),
        ("a_b.example", "labels of letters, digits and hyphens"),
        ("-a.example", "labels of letters"),
        ("a..example", "labels of letters"),
        (".example", "labels of letters"),
        ("*.*.example", "labels of letters"),
        ("a.*.example", "labels of letters"),
        ("*example", "labels of letters"),
        ("*.", "labels of letters"),
        ("https://pypi.org", "port from 1 to 65535"),
        ("pypi.org/simple", "must have an address"),
        ("user@pypi.org", "labels of letters"),
        (" pypi.org", "labels of letters"),
        ("pypi.org\n", "labels of letters"),
        (long_label.as_str(), "labels of letters"),
        (long_name.as_str(), "up to 253 characters"),
        ("127.1", "must be an address of four decimal numbers"),
        ("2130706433", "must be an address of four decimal numbers"),
        ("0x7f.0x1", "must be an address of four decimal numbers"),
        ("*.1", "must be an address of four decimal numbers"),
        ("pypi.org:", "port from 1 to 65535"),
        ("pypi.org:0", "port from 1 to 65535"),
        ("pypi.org:65536", "port from 1 to 65535"),
        ("pypi.org:0443", "port from 1 to 65535"),
        ("pypi.org:+443", "port from 1 to 65535"),
        ("pypi.org:https", "port from 1 to 65535"),
        ("2001:db8::1", "IPv6 in brackets"),
        ("[2001:db8::1", "must have a ']'"),
        ("[2001:db8::]/32", "within the brackets"),
        ("[2001:db8::1]443", "must have a colon"),
        ("[pypi.org]", "must have an address"),
        ("[203.0.113.1]", "brackets around IPv6 alone"),
        ("[2001:db8::1/32]", "must have no bits set after the first 32, as in 2001:db8::/32"),
        ("203.0.113.1/24", "must have no bits set after the first 24, as in 203.0.113.0/24"),
        ("203.0.113.0/33", "prefix from 1 to 32"),
        ("203.0.113.0/", "prefix from 1 to 32"),
        ("203.0.113.0/+8", "prefix from 1 to 32"),
        ("[2001:db8::/129]", "prefix from 1 to 128"),
        ("0.0.0.0/0", "must be '*'"),
        ("[::/0]", "must be '*'"),
        ("[::ffff:203.0.113.1]", "written as the IPv4 address"),
        ("[64:ff9b::/96]", "written as the IPv4 address"),
    ] {
        let said = broken(entry);
        assert!(said.contains(rule), "{entry}: {said}");
    }
}

#[test]
fn what_can_never_be_reached_cannot_be_allowed() {
    for (entry, what) in [
        ("127.0.0.1", "127.0.0.0/8 (loopback)"),
        ("127.0.0.0/30:*", "127.0.0.0/8 (loopback)"),
        ("126.0.0.0/7", "127.0.0.0/8 (loopback)"),
        ("0.0.0.0", "0.0.0.0/8 (this network)"),
        ("169.254.169.254:80", "169.254.169.254 (a metadata service of a cloud)"),
        ("169.254.0.0/16", "a metadata service of a cloud"),
        ("100.100.100.200", "100.100.100.200 (a metadata service of a cloud)"),
        ("168.63.129.0/24", "168.63.129.16"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255", "a reserved range"),
        ("[::1]", "loopback"),
        ("[fe80::/10]", "link-local"),
        ("[fd00:ec2::254]", "a metadata service of a cloud"),
        ("[ff02::1]", "multicast"),
        ("[2002:7f00:1::/48]", "IPv4 within IPv6"),
        ("[8000::/1]", "can never be reached"),
        ("metadata.google.internal", "a metadata service of a cloud"),
        ("*.metadata.google.internal", "a metadata service of a cloud"),
        ("Metadata:*", "a metadata service of a cloud"),
        ("localhost:8080", "loopback"),
    ] {
        let said = broken(entry);
        assert!(said.contains(what) && said.contains("can never be reached"), "{entry}: {said}");
    }
}

#[test]
fn private_ranges_can_be_allowed_around_the_metadata_services_in_them() {
    let policy = egress(&["100.64.0.0/10", "[fc00::/7]", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], &[]);
    for address in ["100.100.100.199", "fd00:ec2::253", "10.0.0.1", "172.31.255.255", "192.168.0.1"] {
        assert_eq!(decided_of_address(&policy, address, 443), "allowed", "{address}");
    }
    for address in ["100.100.100.200", "fd00:ec2::254"] {
        assert_eq!(decided_of_address(&policy, address, 443), "never_reachable", "{address}");
    }
}

#[test]
fn lists_must_fit_their_mode() {
    let fields = |result: Result<NetworkPolicy>| -> Vec<String> {
        result.unwrap_err().violations().iter().map(|v| format!("{} {}", v.field, v.rule)).collect()
    };
    assert_eq!(
        fields(parse(NetworkMode::None, &["pypi.org"], &["10.0.0.1"])),
        ["network.allow must be empty in mode none", "network.deny must be empty in mode none"]
    );
    let said =
        fields(parse(NetworkMode::Open, &["pypi.org", "*.a.example", "*", "8.8.8.8", "10.0.0.0/8"], &["a.example"]));
    assert_eq!(said.len(), 5, "{said:?}");
    assert!(said[0].starts_with("network.allow[0] must be an address or a range in mode open"), "{said:?}");
    assert!(said[2].starts_with("network.allow[2] must be an address or a range in mode open"), "{said:?}");
    assert!(said[3].starts_with("network.allow[3] must be private in mode open"), "{said:?}");
    assert!(said[4].starts_with("network.deny[0] must be an address or a range in mode open"), "{said:?}");
}

#[test]
fn every_broken_rule_is_named_at_once() {
    let many = vec!["a.example".to_owned(); 257];
    let deny = strings(&["b.example", "nope_", "1.2.3"]);
    let error = NetworkPolicy::parse("template.network", None, &many, &deny).unwrap_err();
    let fields: Vec<_> = error.violations().iter().map(|v| v.field.as_str()).collect();
    assert_eq!(
        fields,
        ["template.network.mode", "template.network.allow", "template.network.deny[1]", "template.network.deny[2]"]
    );
    assert!(error.message().contains("template.network.mode must be none, egress or open"), "{error}");
    assert!(NetworkPolicy::parse("network", Some(NetworkMode::Egress), &many[..256], &many[..256]).is_ok());
}

#[test]
fn modes_have_the_words_and_numbers_of_the_contract() {
    for mode in NetworkMode::ALL {
        assert_eq!(NetworkMode::from_word(mode.as_str()), Some(mode));
        assert_eq!(NetworkMode::from_number(mode.number()), Some(mode));
    }
    assert_eq!(
        (NetworkMode::from_word(""), NetworkMode::from_number(0)),
        (Some(NetworkMode::None), Some(NetworkMode::None))
    );
    assert_eq!((NetworkMode::from_word("all"), NetworkMode::from_number(4)), (None, None));
}
