//! Ids by which programs know the machine that they run on: of each sandbox's own, and of nothing else.

use std::path::PathBuf;

use cloud_sandbox_jailer::Root;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

/// Gives a root new ids.
pub fn renew(root: &mut Root) {
    root.replaced.push((PathBuf::from(BOOT_ID), format!("{}\n", uuid(rand::random()))));
    let machine_id = (PathBuf::from(MACHINE_ID), format!("{}\n", uuid(rand::random()).replace('-', "")));
    // a root file system has an `/etc` of its own, where nothing can be made
    let place = if root.base.is_some() { &mut root.replaced } else { &mut root.files };
    place.push(machine_id);
}

/// A random UUID (RFC 9562, version 4), which is what both are: machine-id(5) without its dashes.
fn uuid(random: u128) -> String {
    const VERSION_4: u128 = 4 << 76;
    const VARIANT: u128 = 0b10 << 62;
    let bits = random & !(0xf << 76) & !(0b11 << 62) | VERSION_4 | VARIANT;
    let digits = format!("{bits:032x}");
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_usual_form() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn no_two_sandboxes_have_the_same() {
        let (mut one, mut other) = (Root::default(), Root::default());
        renew(&mut one);
        renew(&mut other);
        assert_ne!(one.replaced, other.replaced);
        assert_ne!(one.files, other.files);
        assert_eq!(one.files[0].1.trim().len(), 32);
    }
}
