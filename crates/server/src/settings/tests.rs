use std::{fs, path::Path};

use super::{values::MASK, *};

/// Settings as a test gives them.
#[derive(Default)]
struct Case<'a> {
    flags: &'a [(&'static str, &'a str)],
    env: &'a [(&'a str, &'a str)],
    file: &'a str,
}

fn host() -> Host {
    Host { is_root: true, ..Host::default() }
}

impl Case<'_> {
    fn resolve(&self, mode: Mode) -> Result<Resolved, Faults> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, self.file).unwrap();
        let env = |name: &str| self.env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let flags = self.flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        resolve(mode, &host(), &Given { flags, env: &env, config: (!self.file.is_empty()).then_some(path) })
    }

    /// The faults as `setting: rule`.
    fn faults(&self, mode: Mode) -> Vec<String> {
        let faults = self.resolve(mode).err().map(|faults| faults.0).unwrap_or_default();
        faults.into_iter().map(|fault| format!("{}: {}", fault.setting, fault.rule)).collect()
    }
}

#[test]
fn table_names_every_setting_once_and_defaults_are_valid() {
    for (index, row) in TABLE.iter().enumerate() {
        assert!(!TABLE[..index].iter().any(|other| other.name == row.name), "{}", row.name);
        assert!(!row.modes.is_empty() && !row.doc.is_empty() && !row.doc.ends_with('.'), "{}", row.name);
        let mut settings = Settings::defaults(Mode::Serve, &host());
        if let Some(value) = (row.get)(&settings) {
            assert_eq!((row.set)(&mut settings, &value), Ok(()), "{}", row.name);
            assert_eq!((row.get)(&settings), Some(value));
        }
    }
    assert!(Case::default().resolve(Mode::Serve).is_ok());
}

#[test]
fn flag_wins_over_environment_over_file_over_default() {
    let file = "pool_min_size = 2\nlog_level = \"warn\"";
    let env = [("POOL_MIN_SIZE", "3")];
    let min = |case: Case<'_>| case.resolve(Mode::Serve).unwrap().settings.pool_min_size;
    assert_eq!(min(Case { flags: &[("pool_min_size", "4")], env: &env, file }), 4);
    assert_eq!(min(Case { env: &env, file, ..Case::default() }), 3);
    assert_eq!(min(Case { file, ..Case::default() }), 2);
    assert_eq!(min(Case::default()), 5);
    // an empty variable is what compose files write for one that is not set
    assert_eq!(min(Case { env: &[("POOL_MIN_SIZE", "")], file, ..Case::default() }), 2);

    let resolved = Case { env: &env, file, ..Case::default() }.resolve(Mode::Serve).unwrap();
    assert_eq!(resolved.source("pool_min_size"), Source::Environment("POOL_MIN_SIZE".into()));
    assert!(matches!(resolved.source("log_level"), Source::File(_)));
    assert_eq!(resolved.source("listen"), Source::Default);
}

#[test]
fn rust_log_is_read_where_log_level_is_not_set() {
    let level = |env| Case { env, ..Case::default() }.resolve(Mode::Serve).unwrap().settings.log_level;
    assert_eq!(level(&[("RUST_LOG", "debug")]), "debug");
    assert_eq!(level(&[("RUST_LOG", "debug"), ("LOG_LEVEL", "error")]), "error");
}

#[test]
fn all_faults_are_reported_together_each_with_its_source() {
    let case = Case {
        flags: &[("listen", "nowhere")],
        env: &[("POOL_MIN_SIZE", "60"), ("REDIS_URL", "host"), ("JWT_SECRET", "hunter2")],
        file: "poolmaxsize = 9\nrate_limit_burst = 0\nlog_level = [1]",
    };
    let text = case.resolve(Mode::Serve).unwrap_err().to_string();
    for part in [
        "listen (flag --listen) must be an IP address and a port",
        "redis_url (environment REDIS_URL) must be a URL like redis://host:port",
        "pool_min_size (environment POOL_MIN_SIZE) must be at most pool_max_size: 60 is more than 50",
        "jwt_secret (environment JWT_SECRET) must be at least 32 bytes long",
        "config.toml) is not a setting; did you mean pool_max_size?",
        "config.toml) must be a whole number from 1 to 1000000, not \"0\"",
        "config.toml) must be a string, a whole number, true or false",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(text.lines().count(), 8);
    assert!(!text.contains("hunter2"));
}

#[test]
fn limit_above_its_maximum_is_a_fault_and_output_is_kept_as_the_journal_does() {
    let env = [
        ("SANDBOX_PIDS_MAX", "100"),
        ("SANDBOX_OPEN_FILES", "8192"),
        ("SANDBOX_OPEN_FILES_MAX", "5000"),
        ("SANDBOX_OUTPUT_BYTES", "2097152"),
        ("JOURNAL_EXECUTION_BYTES", "1048576"),
        ("SANDBOX_EXECUTION_SECONDS_MAX", "60"),
        ("SANDBOX_CPU_WEIGHT", "10001"),
    ];
    let faults = Case { env: &env, ..Case::default() }.faults(Mode::Serve);
    let rules = [
        "sandbox_cpu_weight: must be a whole number from 1 to 10000, not \"10001\"",
        "sandbox_pids: must be at most sandbox_pids_max: 256 is more than 100",
        "sandbox_open_files: must be at most sandbox_open_files_max: 8192 is more than 5000",
        "sandbox_output_bytes: must be at most journal_execution_bytes: 2097152 is more than 1048576",
        "sandbox_execution_seconds: must be at most sandbox_execution_seconds_max: 86400 is more than 60",
    ];
    assert_eq!(faults, rules);

    let resolved = Case { env: &[("JOURNAL_EXECUTION_BYTES", "1048576")], ..Case::default() }.resolve(Mode::Serve);
    let settings = resolved.unwrap().settings;
    assert_eq!((settings.sandbox_limits.output_bytes, settings.sandbox_limits_max.output_bytes), (1 << 20, 1 << 20));
}

#[test]
fn most_that_may_be_asked_for_is_what_the_host_has() {
    let most = |memory_bytes, cores| {
        let host = Host { memory_bytes, cores, ..Host::default() };
        let most = Settings::defaults(Mode::Serve, &host).sandbox_limits_max;
        (most.memory_bytes, most.disk_bytes, most.cpu_millis)
    };
    assert_eq!(most(Some(8 << 30), 4), (8 << 30, 8 << 30, 4000));
    // a small machine still takes what a sandbox has by default
    assert_eq!(most(Some(1 << 20), 0), (1 << 30, 512 << 20, 1000));
    assert_eq!(most(None, u32::MAX), (64 << 30, 64 << 30, 64_000));
}

#[test]
fn broken_files_are_named_without_their_content() {
    let faults =
        Case { file: "listen = \"127.0.0.1:1\"\njwt_secret = \"hunter2\n", ..Case::default() }.faults(Mode::Serve);
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("config: is not TOML") && faults[0].contains("line 2"), "{faults:?}");
    assert!(!faults[0].contains("hunter2"));

    let given = Given { flags: HashMap::new(), env: &|_| None, config: Some("/nonexistent/config.toml".into()) };
    let text = resolve(Mode::Serve, &host(), &given).unwrap_err().to_string();
    assert!(text.contains("config (file /nonexistent/config.toml) cannot be read"), "{text}");
}

#[test]
fn settings_of_later_versions_are_refused_in_the_file() {
    let faults = Case { file: "gpu_count = 1", ..Case::default() }.faults(Mode::Serve);
    assert_eq!(faults, ["gpu_count: is not a setting"]);
}

#[test]
fn database_is_postgres_alone_and_its_password_is_shown_nowhere() {
    let resolve = |url| Case { env: &[("DATABASE_URL", url)], ..Case::default() }.resolve(Mode::SessionManager);
    for wrong in ["sqlite://hunter2.db", "mysql://ada:hunter2@host/db", "postgres://ada:hunter2@host/db?sslmod=require"]
    {
        let text = resolve(wrong).unwrap_err().to_string();
        assert!(text.contains("database_url (environment DATABASE_URL) must") && !text.contains("hunter2"), "{text}");
    }
    let url = "postgresql://ada:hunter2@host/db?sslmode=require";
    let env = [("DATABASE_URL", url), ("REDIS_URL", "redis://host")];
    let resolved = Case { env: &env, ..Case::default() }.resolve(Mode::SessionManager).unwrap();
    let shown = print(&resolved);
    assert!(shown.contains(&format!("\"postgresql://ada:{MASK}@host/db?sslmode=require\"")), "{shown}");
    assert!(!format!("{shown}{resolved:?}").contains("hunter2"), "{shown}");
    assert_eq!(resolved.settings.database_url.unwrap().reveal(), url);
}

#[test]
fn bucket_needs_a_key_which_is_shown_nowhere() {
    let faults = |env, mode| Case { env, ..Case::default() }.faults(mode);
    let missing = faults(&[("S3_BUCKET", "sessions")], Mode::Serve);
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].starts_with("s3_access_key_id: must") && missing[1].starts_with("s3_secret_access_key: must"));
    assert!(faults(&[("S3_ENDPOINT", "http://host:9000")], Mode::Serve)[0].starts_with("s3_bucket: must be set"));
    // they may be there for another program
    assert!(faults(&[("AWS_ACCESS_KEY_ID", "ada"), ("AWS_SECRET_ACCESS_KEY", "hunter2")], Mode::Serve).is_empty());

    let mut env = vec![
        ("S3_BUCKET", "sessions"),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("S3_ACCESS_KEY_ID", "ada"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ];
    let resolved = Case { env: &env, ..Case::default() }.resolve(Mode::Serve).unwrap();
    let shown = format!("{}{resolved:?}", print(&resolved));
    assert!(!shown.contains("hunter2") && shown.contains("s3_bucket = \"sessions\""), "{shown}");
    let amazon = resolved.settings.s3.options().unwrap();
    assert_eq!((amazon.access_key_id.as_str(), amazon.secret_access_key.as_str()), ("ada", "hunter2"));
    assert_eq!((amazon.region.as_str(), amazon.endpoint, amazon.force_path_style), ("us-east-1", None, false));

    env.extend([("S3_ENDPOINT", "http://host:9000/"), ("S3_PREFIX", "a/b/"), ("S3_REGION", "eu-1")]);
    let own = Case { env: &env, ..Case::default() }.resolve(Mode::Serve).unwrap().settings.s3.options().unwrap();
    assert_eq!((own.endpoint.as_deref(), own.prefix.as_str()), (Some("http://host:9000"), "a/b"));
    assert!(own.force_path_style && own.region == "eu-1");
    env.push(("S3_FORCE_PATH_STYLE", "false"));
    let own = Case { env: &env, ..Case::default() }.resolve(Mode::Serve).unwrap().settings.s3.options().unwrap();
    assert!(!own.force_path_style);
    assert!(Case::default().resolve(Mode::Serve).unwrap().settings.s3.options().is_none());
}

#[test]
fn secrets_are_masked_wherever_settings_are_shown() {
    let secret = "0123456789abcdef0123456789abcdef";
    let env = [("JWT_SECRET", secret), ("API_KEYS", "0123456789abcdef:admin"), ("REDIS_URL", "redis://u:pw@host:1")];
    let resolved = Case { env: &env, ..Case::default() }.resolve(Mode::Serve).unwrap();
    let shown = format!("{}{resolved:?}", print(&resolved));
    assert!(shown.contains(&format!("jwt_secret = \"{MASK}\"")), "{shown}");
    assert!(shown.contains(&format!("redis_url = \"redis://u:{MASK}@host:1\"")), "{shown}");
    for hidden in [secret, "0123456789abcdef", ":pw@"] {
        assert!(!print(&resolved).contains(hidden), "{hidden}");
        assert!(hidden == ":pw@" || !shown.contains(hidden), "{hidden}");
    }
}

#[test]
fn printed_settings_can_be_read_back() {
    let flags = &[("pool_max_size", "7"), ("log_level", "warn,a=debug"), ("data_dir", "/tmp/with \"quotes\"")];
    let first = Case { flags, ..Case::default() }.resolve(Mode::Serve).unwrap();
    let second = Case { file: &print(&first), ..Case::default() }.resolve(Mode::Serve).unwrap();
    for row in TABLE {
        assert_eq!((row.get)(&first.settings), (row.get)(&second.settings), "{}", row.name);
    }
}

#[test]
fn secret_that_everybody_knows_is_refused_off_loopback() {
    let refused = |listen: &str, grpc: &str, secret: &str| {
        let env = [("JWT_SECRET", secret), ("LISTEN", listen), ("GRPC_LISTEN", grpc)];
        !Case { env: &env, ..Case::default() }.faults(Mode::Serve).is_empty()
    };
    let (here, everywhere) = ("127.0.0.1:1", "0.0.0.0:2");
    for secret in ["change-me", "CHANGE_ME", "your-secret-key", "secret", "your-secret-key-change-in-production"] {
        assert!(!refused(here, "[::1]:3", secret), "{secret}");
        assert!(refused(everywhere, here, secret) && refused(here, everywhere, secret), "{secret}");
    }
    assert!(!refused(everywhere, "0.0.0.0:3", &"x".repeat(32)));
    assert!(refused(here, "127.0.0.1:2", "short but not known"));
}

#[test]
fn role_apart_needs_what_it_shares_and_an_address_to_be_reached_at() {
    let faults = Case { env: &[("GRPC_LISTEN", "0.0.0.0:9093")], ..Case::default() }.faults(Mode::Node);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("redis_url: must be set") && faults[1].starts_with("advertise_address: must be set"));
    assert!(Case::default().resolve(Mode::Gateway).is_ok());
}

#[test]
fn roles_on_one_machine_have_ports_of_their_own() {
    let port = |mode| Settings::defaults(mode, &host()).grpc_listen.port();
    let ports = [Mode::Scheduler, Mode::SessionManager, Mode::Exec, Mode::Node].map(port);
    assert_eq!(ports, [9090, 9091, 9092, 9093]);
    let gateway = Settings::defaults(Mode::Gateway, &host());
    assert!(gateway.scheduler_url.ends_with(":9090") && gateway.session_url.ends_with(":9091"));
    assert!(gateway.exec_url.ends_with(":9092"));
    assert!(Settings::defaults(Mode::Exec, &host()).session_url.ends_with(":9091"));
}

#[test]
fn state_lies_where_the_user_keeps_it() {
    let folder = |host: &Host| Settings::defaults(Mode::Serve, host).data_dir;
    let user = Host { home: Some("/home/ada".into()), ..Host::default() };
    assert_eq!(folder(&host()), Path::new("/var/lib/cloud-sandbox"));
    assert_eq!(folder(&user), Path::new("/home/ada/.local/state/cloud-sandbox"));
    assert_eq!(folder(&Host { state_home: Some("/state".into()), ..user }), Path::new("/state/cloud-sandbox"));
    let homeless =
        resolve(Mode::Serve, &Host::default(), &Given { flags: HashMap::new(), env: &|_| None, config: None });
    assert!(homeless.unwrap_err().to_string().contains("data_dir (default) must be set"));
}

#[test]
fn known_variable_without_effect_is_told() {
    let env = [("SANDBOX_RUNTIME", "linux"), ("POOL_MIN_SIZE", "3")];
    let resolved = Case { env: &env, ..Case::default() }.resolve(Mode::Serve).unwrap();
    let names: Vec<_> = resolved.unheeded.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["SANDBOX_RUNTIME"]);
}

#[test]
fn default_template_is_the_native_one_where_that_runtime_is() {
    let template = |env| Case { env, ..Case::default() }.resolve(Mode::Serve).unwrap().settings.default_template;
    assert_eq!(template(&[]), "host");
    assert_eq!(template(&[("SANDBOX_RUNTIMES", "docker,linux")]), "host");
    assert_eq!(template(&[("SANDBOX_RUNTIMES", "docker")]), "docker");
    assert_eq!(template(&[("SANDBOX_RUNTIMES", "docker"), ("DEFAULT_TEMPLATE", "python@3")]), "python@3");
    let faults = Case { env: &[("SANDBOX_RUNTIMES", "podman")], ..Case::default() }.faults(Mode::Node);
    assert!(faults[0].starts_with("sandbox_runtimes: must be some of linux, docker"), "{faults:?}");
}
