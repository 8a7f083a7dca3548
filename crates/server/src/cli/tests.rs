use super::*;

fn parsed(line: &str) -> Result<Invocation, clap::Error> {
    parse(line.split_whitespace().map(OsString::from))
}

fn host() -> Host {
    Host { is_root: true, ..Host::default() }
}

#[test]
fn command_line_is_consistent() {
    command(&host()).debug_assert();
}

#[test]
fn role_is_told_by_the_programs_own_name() {
    for (line, mode) in [
        ("/opt/bin/gateway", Mode::Gateway),
        ("scheduler --log-level debug", Mode::Scheduler),
        ("./session-manager --grpc-listen 127.0.0.1:1", Mode::SessionManager),
        ("cloud-sandbox exec", Mode::Exec),
        ("anything serve", Mode::Serve),
    ] {
        assert_eq!(parsed(line).unwrap().mode(), mode, "{line}");
    }
    assert!(parsed("gateway serve").is_err());
}

#[test]
fn flags_of_settings_stand_before_or_after_the_command() {
    for line in
        ["cloud-sandbox --data-dir /d serve", "cloud-sandbox serve --data-dir /d", "cloud-sandbox serve --data-dir=/d"]
    {
        assert_eq!(parsed(line).unwrap().flags["data_dir"], "/d", "{line}");
    }
    assert_eq!(parsed("cloud-sandbox serve --require-isolation").unwrap().flags["require_isolation"], "true");
    assert_eq!(parsed("cloud-sandbox serve --require-isolation=false").unwrap().flags["require_isolation"], "false");
}

#[test]
fn command_takes_only_the_settings_that_it_heeds() {
    assert!(parsed("cloud-sandbox gateway --pool-min-size 1").is_err());
    assert!(parsed("cloud-sandbox node --pool-min-size 1").is_ok());
    // what stands in a command line is read by everybody on the machine
    assert!(parsed("cloud-sandbox serve --jwt-secret x").is_err());
}

#[test]
fn configuration_alone_is_the_servers() {
    assert_eq!(parsed("cloud-sandbox --print-config").unwrap().mode(), Mode::Serve);
    assert!(parsed("cloud-sandbox").is_err());
}

#[test]
fn run_takes_a_file() {
    let invocation = parsed("cloud-sandbox run -l python --timeout 5 -").unwrap();
    let Some(Action::Run(run)) = invocation.cli.action else { panic!("not run") };
    assert_eq!((run.file.as_str(), run.language.as_deref(), run.timeout), ("-", Some("python"), 5));
    for bad in ["run", "run --timeout 0 x.py", "run --timeout 86401 x.py", "token", "token --user a --role service"] {
        assert!(parsed(&format!("cloud-sandbox {bad}")).is_err(), "{bad}");
    }
}

/// The help texts are what people learn the program from; a change to them is meant.
#[test]
fn help_is_as_recorded() {
    let mut command = command(&host()).term_width(100);
    command.build();
    insta::assert_snapshot!("help", command.render_help().to_string());
    for name in ["serve", "gateway", "scheduler", "node", "run", "doctor", "token"] {
        let inner = command.find_subcommand_mut(name).expect("the command exists");
        insta::assert_snapshot!(format!("help_{name}"), inner.render_help().to_string());
    }
    let template = command.find_subcommand_mut("template").expect("the command exists");
    for name in ["add", "list", "show", "remove"] {
        let inner = template.find_subcommand_mut(name).expect("the command exists");
        insta::assert_snapshot!(format!("help_template_{name}"), inner.render_help().to_string());
    }
}
