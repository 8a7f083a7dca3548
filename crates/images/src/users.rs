//! `/etc/passwd` and `/etc/group` of an image with the users that a sandbox needs added.

use cloud_sandbox_model::sandbox::USER;

/// What must be there: name, id, and the line. Where an id has a name already, that stays; where a name of these has
/// another id, it gets this one.
const USERS: [(&str, u32, &str); 3] = [
    ("root", 0, "root:x:0:0:root:/root:/usr/sbin/nologin"),
    ("user", USER, "user:x:1000:1000:user:/home/user:/bin/sh"),
    ("nobody", 65534, "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"),
];
const GROUPS: [(&str, u32, &str); 4] = [
    ("root", 0, "root:x:0:"),
    ("tty", 5, "tty:x:5:"),
    ("user", USER, "user:x:1000:"),
    ("nogroup", 65534, "nogroup:x:65534:"),
];

/// The users of an image, whose `/etc/passwd` is given, and of a sandbox.
#[must_use]
pub fn passwd(text: &str) -> String {
    with(text, &USERS)
}

/// The groups of both.
#[must_use]
pub fn group(text: &str) -> String {
    with(text, &GROUPS)
}

fn with(text: &str, needed: &[(&str, u32, &str)]) -> String {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for (name, id, line) in needed {
        if lines.iter().any(|line| self::id(line) == Some(*id)) {
            continue;
        }
        lines.retain(|line| self::name(line) != *name);
        lines.push(line);
    }
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

fn name(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

fn id(line: &str) -> Option<u32> {
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_users_gets_those_of_a_sandbox() {
        let users = passwd("");
        assert_eq!(users.lines().count(), 3);
        assert!(users.contains("user:x:1000:1000:user:/home/user:/bin/sh\n"));
        assert_eq!(group(""), "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n");
    }

    #[test]
    fn users_of_the_image_stay() {
        let image =
            "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/false\nnode:x:1000:1000::/home/node:/bin/bash\n";
        let users = passwd(image);
        assert!(users.starts_with(image));
        assert!(!users.contains("\nuser:"), "id 1000 has a name already");
        assert!(users.contains("\nnobody:x:65534:"));
        assert_eq!(group("staff:x:1000:ada\ntty:x:7:\n"), "staff:x:1000:ada\nroot:x:0:\ntty:x:5:\nnogroup:x:65534:\n");
    }

    #[test]
    fn a_name_of_ours_gets_our_id() {
        let users = passwd("user:x:1001:1001::/home/other:/bin/sh\n");
        assert!(!users.contains("1001"));
        assert_eq!(users.matches("user:x:1000:").count(), 1);
    }

    #[test]
    fn lines_that_say_nothing_stay_as_they_are() {
        let users = passwd("# ours\n+::::::\nx\n");
        assert!(users.starts_with("# ours\n+::::::\nx\nroot:"));
    }
}
