//! Pages of templates: those that are built in first, then those in the store.

use std::collections::BTreeSet;

use cloud_sandbox_model::{Error, Result, input::page_size};
use cloud_sandbox_proto::v1;
use cloud_sandbox_storage::{NodeEntry, page};

use super::{Templates, is_reported_built_in, service::checked_name};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;
/// Stands before the name of a built-in template in a page token; no name begins with it.
const BUILT_IN: char = '!';

/// A page of what there is.
pub(super) async fn list(
    templates: &Templates,
    nodes: &[NodeEntry],
    request: &v1::ListTemplatesRequest,
) -> Result<v1::ListTemplatesResponse> {
    let size = page_size(request.page_size, PAGE_DEFAULT, PAGE_MAX)?;
    if request.name.is_empty() {
        newest(templates, nodes, size, &request.page_token).await
    } else {
        versions(templates, nodes, size, request).await
    }
}

/// The newest version of each.
async fn newest(
    templates: &Templates,
    nodes: &[NodeEntry],
    size: usize,
    token: &str,
) -> Result<v1::ListTemplatesResponse> {
    let after: Option<String> = page::after(token)?;
    let after_built_in = after.as_deref().and_then(|after| after.strip_prefix(BUILT_IN));
    let after_name = after.as_deref().filter(|after| !after.starts_with(BUILT_IN));
    let mut found = Vec::new();
    if after_name.is_none() {
        let names = built_in_names(nodes);
        let names = names.into_iter().filter(|name| after_built_in.is_none_or(|after| *name > after));
        found.extend(names.map(|name| (format!("{BUILT_IN}{name}"), templates.built_in_message(name, nodes))));
    }
    let more = (size + 1).saturating_sub(found.len());
    for record in templates.store.newest(after_name, more).await? {
        found.push((record.template.name.clone(), Templates::message(&record, nodes)));
    }
    let next_page_token = page::cut(&mut found, size, |(key, _)| key.clone());
    let templates = found.into_iter().map(|(_, message)| message).collect();
    Ok(v1::ListTemplatesResponse { templates, next_page_token })
}

fn built_in_names(nodes: &[NodeEntry]) -> BTreeSet<&str> {
    let reported = nodes.iter().flat_map(|node| &node.templates).map(|own| own.reference.as_str());
    reported.filter(|reference| !reference.contains('@')).collect()
}

/// All versions of one.
async fn versions(
    templates: &Templates,
    nodes: &[NodeEntry],
    size: usize,
    request: &v1::ListTemplatesRequest,
) -> Result<v1::ListTemplatesResponse> {
    let (name, version) = checked_name(&request.name)?;
    if version.is_some() {
        return Err(Error::invalid("name", "must be without a version: its versions are listed"));
    }
    let before: Option<u32> = page::after(&request.page_token)?;
    if is_reported_built_in(name, nodes) {
        let only = before.is_none().then(|| templates.built_in_message(name, nodes));
        return Ok(v1::ListTemplatesResponse { templates: only.into_iter().collect(), next_page_token: String::new() });
    }
    let mut found = templates.store.versions(name, before, size + 1).await?;
    let next_page_token = page::cut(&mut found, size, |record| record.template.version);
    let templates = found.iter().map(|record| Templates::message(record, nodes)).collect();
    Ok(v1::ListTemplatesResponse { templates, next_page_token })
}
