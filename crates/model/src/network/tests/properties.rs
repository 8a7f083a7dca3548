use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

#[test]
fn policy_is_shown_as_text_that_means_the_same() {
    let allow = [
        "*",
        "*:*",
        "pypi.org",
        "*.pythonhosted.org:443",
        "10.0.0.0/8:*",
        "203.0.113.7",
        "[2001:db8::/32]:22",
        "[2001:db8::1]",
    ];
    let policy = egress(&allow, &["evil.example", "*:25"]);
    assert_eq!(policy.allow(), allow);
    assert_eq!(policy.deny(), ["evil.example", "*:25"]);
    assert_eq!(egress(&["PyPI.org.:443"], &[]).allow(), ["pypi.org:443"]);
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let v4 = any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    let v6 = any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)));
    // near to what is special, which chance alone would never meet
    let special = prop::sample::select(vec![
        "127.0.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "::1",
        "::",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "fc00::1",
        "8.8.8.8",
    ]);
    let near = (special, 0u32..128).prop_map(|(text, bit)| match text.parse().unwrap() {
        IpAddr::V4(own) => IpAddr::V4(Ipv4Addr::from_bits(own.to_bits() ^ 1u32.checked_shl(bit).unwrap_or(0))),
        IpAddr::V6(own) => IpAddr::V6(Ipv6Addr::from_bits(own.to_bits() ^ (1u128 << bit))),
    });
    let plain = prop_oneof![v4, v6, near].boxed();
    let wrapped = (plain.clone(), 0..4).prop_map(|(address, form)| {
        let IpAddr::V4(own) = address else { return address };
        let bits = u128::from(own.to_bits());
        IpAddr::V6(Ipv6Addr::from_bits(match form {
            0 => 0xffff << 32 | bits,
            1 => 0x0064_ff9b << 96 | bits,
            2 => 0x2002 << 112 | bits << 80,
            _ => bits,
        }))
    });
    prop_oneof![plain, wrapped]
}

fn any_entry() -> impl Strategy<Value = String> {
    let range = (any_address(), 1..=128u8).prop_map(|(address, prefix)| match address {
        IpAddr::V4(own) => {
            let prefix = prefix.min(32);
            format!("{}/{prefix}", Ipv4Addr::from_bits(own.to_bits() & u32::MAX << (32 - u32::from(prefix))))
        }
        IpAddr::V6(own) => {
            format!("[{}/{prefix}]", Ipv6Addr::from_bits(own.to_bits() & u128::MAX << (128 - u32::from(prefix))))
        }
    });
    let host = prop_oneof![range, Just("*".to_owned()), "[a-c]{1,2}\\.example", "\\*\\.[a-c]\\.example"];
    (host, prop::sample::select(vec!["", ":*", ":443", ":5432"])).prop_map(|(host, port)| format!("{host}{port}"))
}

proptest! {
    #[test]
    fn no_policy_that_parses_allows_what_can_never_be_reached(
        allow in prop::collection::vec(any_entry(), 0..6),
        open in any::<bool>(),
        address in any_address(),
        named in any::<bool>(),
        port in prop::sample::select(vec![80u16, 443, 5432]),
    ) {
        let mode = if open { NetworkMode::Open } else { NetworkMode::Egress };
        // those entries that can stand in a policy
        let admitted = |entry: &String| NetworkPolicy::parse("network", Some(mode), std::slice::from_ref(entry), &[]).is_ok();
        let allow: Vec<_> = allow.into_iter().filter(admitted).collect();
        let policy = NetworkPolicy::parse("network", Some(mode), &allow, &[]).unwrap();
        let host = if named { "a.example".to_owned() } else { address.to_string() };
        let decision = policy.decide_address(&host, address, port, &HostAddresses::default());
        let inner = canonical(address);
        let std_never = match inner {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local(),
        };
        if never_reachable(address).is_some() || std_never {
            prop_assert!(!decision.is_allowed(), "{policy:?} {address}");
        }
        if private(address).is_some() && decision.is_allowed() {
            prop_assert!(policy.allow.iter().any(|rule| matches!(rule.host, Host::Range(range) if range.contains(inner))));
        }
    }

    #[test]
    fn entries_are_shown_as_they_are_read(entry in any_entry()) {
        if let Ok(rule) = entry.parse::<Rule>() {
            let again: Rule = rule.to_string().parse().unwrap();
            prop_assert_eq!(&again, &rule);
            prop_assert_eq!(again.to_string(), rule.to_string());
        }
    }

    #[test]
    fn reading_never_panics(entry in "\\PC{0,40}", wild in "[\\[\\]:*./0-9a-fx-]{0,30}") {
        let _ = entry.parse::<Rule>();
        if let Ok(rule) = wild.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}
