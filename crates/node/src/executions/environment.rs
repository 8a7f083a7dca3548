//! The variables of what runs in a sandbox, in layers: what its template's image says and what every sandbox has, the
//! template's own, the sandbox's, and the call's.

use std::collections::HashMap;

use cloud_sandbox_runtime::Prepared;

use crate::templates::Origin;

/// The folder to run in.
pub(crate) const CWD_DEFAULT: &str = "/workspace";

const BASE: [(&str, &str); 6] = [
    // where a Go from go.dev lies comes last: nothing else is there
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin"),
    ("HOME", "/home/user"),
    ("USER", "user"),
    ("LOGNAME", "user"),
    ("LANG", "C.UTF-8"),
    ("TMPDIR", "/tmp"),
];
/// What of these an image may say otherwise.
const OF_IMAGES: [&str; 2] = ["PATH", "LANG"];
/// The user of a sandbox whose template names none.
const OWN_USER: [&str; 2] = ["user", "1000"];
/// What of these depends on who runs.
const OF_USERS: [&str; 3] = ["HOME", "USER", "LOGNAME"];

/// The template's, the sandbox's and the call's variables, later ones winning.
pub(crate) fn environment(
    template: &HashMap<String, String>,
    sandbox: &HashMap<String, String>,
    call: HashMap<String, String>,
) -> HashMap<String, String> {
    let mut env = template.clone();
    env.extend(sandbox.clone());
    env.extend(call);
    env
}

/// What everything in a template's sandboxes has: what its image says, but for who runs there and where.
pub(crate) fn of_image(template: &Prepared) -> HashMap<String, String> {
    let mut env: HashMap<_, _> = template.env.clone().into_iter().collect();
    for (name, value) in BASE {
        if !(OF_IMAGES.contains(&name) && env.contains_key(name)) {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    let (name, home) = match template.user.as_str() {
        "" => return env,
        "root" | "0" => ("root", "/root".to_owned()),
        // an account of that number may have no home, or none that is there
        number if number.parse::<u32>().is_ok() => (number, CWD_DEFAULT.to_owned()),
        name => (name, format!("/home/{name}")),
    };
    let home = template.env.get("HOME").cloned().unwrap_or(home);
    env.extend(
        [("HOME", home), ("USER", name.to_owned()), ("LOGNAME", name.to_owned())]
            .map(|(name, value)| (name.to_owned(), value)),
    );
    env
}

/// Leaves out what the sandbox's own user has where `user` is another, as far as nobody has said otherwise: the agent knows
/// that one's account.
pub(crate) fn leave_to_agent(env: &mut HashMap<String, String>, origin: &Origin, user: &str) {
    let own = match origin.prepared.user.as_str() {
        "" => &OWN_USER[..],
        own => &[own],
    };
    if !user.is_empty() && !own.contains(&user) {
        env.retain(|name, value| !OF_USERS.contains(&name.as_str()) || origin.env.get(name) != Some(value));
    }
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_runtime::Prepared;

    use super::*;

    fn image(user: &str, env: &[(&str, &str)]) -> HashMap<String, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        of_image(&Prepared { user: user.to_owned(), env, ..Prepared::host() })
    }

    #[test]
    fn image_says_where_programs_are_but_not_who_runs_them() {
        let env = image("", &[("PATH", "/opt/bin"), ("HOME", "/root"), ("TMPDIR", "/scratch"), ("JAVA_HOME", "/jdk")]);
        let told = ["PATH", "HOME", "TMPDIR", "JAVA_HOME", "LANG", "USER"].map(|name| env[name].as_str());
        assert_eq!(told, ["/opt/bin", "/home/user", "/tmp", "/jdk", "C.UTF-8", "user"]);
        assert!(image("", &[])["PATH"].ends_with(":/usr/local/go/bin"));
    }

    #[test]
    fn home_is_that_of_the_user_of_the_template() {
        let home = |user, env: &[(&str, &str)]| {
            let env = image(user, env);
            (env["HOME"].clone(), env["USER"].clone())
        };
        let pair = |home: &str, user: &str| (home.to_owned(), user.to_owned());
        assert_eq!(home("root", &[]), pair("/root", "root"));
        assert_eq!(home("0", &[]), pair("/root", "root"));
        assert_eq!(home("node", &[]), pair("/home/node", "node"));
        assert_eq!(home("1234", &[]), pair("/workspace", "1234"));
        assert_eq!(home("postgres", &[("HOME", "/var/lib/postgresql")]), pair("/var/lib/postgresql", "postgres"));
    }
}
