//! The comments of the contracts, by file and path.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;

/// The comments before every thing in the contracts.
#[derive(Debug)]
pub struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    pub fn of(pool: &DescriptorPool) -> Self {
        let mut comments = HashMap::new();
        for file in pool.file_descriptor_protos() {
            let locations = file.source_code_info.iter().flat_map(|info| &info.location);
            for location in locations {
                if let Some(text) = &location.leading_comments {
                    // lines are broken where the contract's margin is; paragraphs end at empty lines
                    let paragraphs = text
                        .trim()
                        .split("\n\n")
                        .map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "));
                    let text = paragraphs.collect::<Vec<_>>().join("\n\n");
                    comments.insert((file.name().to_owned(), location.path.clone()), text);
                }
            }
        }
        Self(comments)
    }

    /// The comment before the thing at `path` of `file`; empty when there is none.
    pub fn text(&self, file: &str, path: &[i32]) -> String {
        self.0.get(&(file.to_owned(), path.to_vec())).cloned().unwrap_or_default()
    }
}
