//! `cloud-sandbox template`: templates of a server that runs already.
//!
//! What a command was asked for goes to standard output, everything else to standard error.

mod add;
mod progress;
mod show;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use cloud_sandbox_gateway_rest::message_json;
use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{
    DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest, ListTemplatesResponse, Template,
    template_service_client::TemplateServiceClient,
};
use cloud_sandbox_rpc::{Upstream, from_status, upstream::MESSAGE_MAX};
use prost::Message;
use tonic::Status;

use crate::{
    cli::template::{ListArgs, RemoveArgs, ShowArgs, TemplateAction, TemplateArgs},
    client::{self, SERVER_ENV, TOKEN_ENV},
    settings::Settings,
    signals::Signals,
    token,
};

/// Who a token is for that is made with the secret in the data folder.
const USER: &str = "cli";
/// It is verified when a call begins, and each command makes a few calls.
const TOKEN_TTL: Duration = Duration::from_secs(600);
const PAGE_SIZE: u32 = 1000;

type Client = TemplateServiceClient<Upstream>;

/// Does what the command line says. The exit code is not zero where a template cannot be used though it was waited for.
pub async fn template(settings: &Settings, arguments: &TemplateArgs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let done = async {
        let client = client(settings, arguments).await?;
        match &arguments.action {
            TemplateAction::Add(wanted) => add::add(client, wanted).await,
            TemplateAction::List(wanted) => list(client, wanted).await,
            TemplateAction::Show(wanted) => show(client, wanted).await,
            TemplateAction::Remove(wanted) => remove(client, wanted).await,
        }
    };
    tokio::select! {
        done = done => done,
        (_, code) = signals.next() => {
            if let TemplateAction::Add(wanted) = &arguments.action {
                progress::end_line();
                eprintln!("what was begun goes on; see: cloud-sandbox template show {}", wanted.name);
            }
            Ok(ExitCode::from(code))
        }
    }
}

/// TemplateService, called with the token given, the one in the environment, one made with this machine's secret where the
/// server is on this machine, or one that the server hands out.
async fn client(settings: &Settings, arguments: &TemplateArgs) -> anyhow::Result<Client> {
    let server = client::server(&arguments.server)?;
    let token = match client::known_token(arguments.token.as_deref()) {
        Some(token) => token,
        None => match token::of_this_machine(settings, USER, TOKEN_TTL)? {
            Some(token) if is_on_this_machine(&arguments.server) => token,
            _ => client::issued_token(&server, &arguments.server).await?,
        },
    };
    let server = client::authorized(server, &token)?;
    Ok(TemplateServiceClient::new(server).max_decoding_message_size(MESSAGE_MAX))
}

/// A token of an admin here is for nobody else.
fn is_on_this_machine(url: &str) -> bool {
    let Ok(url) = url.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// What a call's status says, and what helps.
fn failure(status: &Status) -> anyhow::Error {
    let error = from_status(status);
    let hint = match error.kind() {
        ErrorKind::PermissionDenied if error.reason() == reason::ROLE_DENIED => {
            format!(
                ": only an admin may do this; make a token with 'cloud-sandbox token --user NAME --role admin' and give it with --token or {TOKEN_ENV}"
            )
        }
        ErrorKind::Unavailable => format!("; --server or {SERVER_ENV} names another server"),
        ErrorKind::Unauthenticated => format!(": give a token of this server with --token or {TOKEN_ENV}"),
        _ => String::new(),
    };
    anyhow::anyhow!("{}{hint}", error.message())
}

async fn list(mut client: Client, wanted: &ListArgs) -> anyhow::Result<ExitCode> {
    let mut all = ListTemplatesResponse::default();
    let mut request = ListTemplatesRequest {
        page_size: PAGE_SIZE,
        name: wanted.name.clone().unwrap_or_default(),
        ..Default::default()
    };
    loop {
        let page = client.list_templates(request.clone()).await.map_err(|status| failure(&status))?.into_inner();
        all.templates.extend(page.templates);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    print(&if wanted.json { as_json(&all, "ListTemplatesResponse")? } else { show::table(&all.templates) })
}

async fn show(mut client: Client, wanted: &ShowArgs) -> anyhow::Result<ExitCode> {
    let request = GetTemplateRequest { name: wanted.name.clone() };
    let answer = client.get_template(request).await.map_err(|status| failure(&status))?.into_inner();
    let template = answer.template.context("the server answered without a template")?;
    print(&if wanted.json { as_json(&template, "Template")? } else { show::whole(&template) })
}

async fn remove(mut client: Client, wanted: &RemoveArgs) -> anyhow::Result<ExitCode> {
    for name in &wanted.names {
        let request = DeleteTemplateRequest { name: name.clone() };
        let answer = client.delete_template(request).await.map_err(|status| failure(&status))?.into_inner();
        print(&answer.deleted.iter().map(|reference| format!("{reference}\n")).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `name@version`, or the name of a built-in one.
fn reference(template: &Template) -> String {
    if template.version == 0 { template.name.clone() } else { format!("{}@{}", template.name, template.version) }
}

fn as_json(message: &impl Message, name: &str) -> anyhow::Result<String> {
    let json = message_json(&format!("cloud_sandbox.v1.{name}"), &message.encode_to_vec());
    Ok(format!("{:#}\n", json.context("failed to print the answer")?))
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    io::stdout().write_all(text.as_bytes()).context("failed to print")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_of_this_machine_is_for_servers_on_it_alone() {
        for here in ["http://127.0.0.1:8080", "http://localhost:8080/", "http://[::1]:1", "http://127.0.0.9"] {
            assert!(is_on_this_machine(here), "{here}");
        }
        for elsewhere in
            ["http://10.0.0.1:8080", "http://localhost.example.org", "http://127.0.0.1.example.org", "", "x y"]
        {
            assert!(!is_on_this_machine(elsewhere), "{elsewhere}");
        }
    }
}
