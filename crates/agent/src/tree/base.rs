//! The base of a save: what the node has already, merged with the walk as both go on.

use cloud_sandbox_proto::{
    agent::v1::{SaveTreeRequest, save_tree_request::Part},
    checkpoint::v1::{Extent, TreeEntry},
};
use tonic::Status;

use super::{
    MAX_CHUNK,
    parts::Parts,
    roots::{Place, Roots, shown},
};

const HASH: usize = 32;

/// The files of the base, as far as they have come.
pub(super) struct Base {
    parts: Parts<SaveTreeRequest>,
    ahead: Option<(Place, Vec<Extent>)>,
    last: Option<Place>,
    ended: bool,
}

impl Base {
    pub(super) fn new(parts: Parts<SaveTreeRequest>) -> Self {
        Self { parts, ahead: None, last: None, ended: false }
    }

    /// The extents of the file at `place`, none when the base does not have it. Places are asked for in order.
    pub(super) fn take(&mut self, roots: &Roots, place: &Place) -> Result<Vec<Extent>, Status> {
        loop {
            if self.ahead.is_none() {
                self.ahead = self.next(roots)?;
            }
            match &self.ahead {
                Some((ahead, _)) if ahead < place => self.ahead = None,
                Some((ahead, _)) if ahead == place => break,
                _ => return Ok(Vec::new()),
            }
        }
        Ok(self.ahead.take().map(|(_, extents)| extents).unwrap_or_default())
    }

    /// Reads what is left, and its end.
    pub(super) fn finish(&mut self, roots: &Roots) -> Result<(), Status> {
        while self.next(roots)?.is_some() {}
        if self.parts.has_more() { Err(Status::invalid_argument("nothing may follow base_end")) } else { Ok(()) }
    }

    fn next(&mut self, roots: &Roots) -> Result<Option<(Place, Vec<Extent>)>, Status> {
        if self.ended {
            return Ok(None);
        }
        let message = self.parts.next()?;
        let message = message.ok_or_else(|| Status::invalid_argument("the save ended without base_end"))?;
        let entry = match message.part {
            Some(Part::Base(entry)) => entry,
            Some(Part::BaseEnd(_)) => {
                self.ended = true;
                return Ok(None);
            }
            Some(Part::Start(_)) => return Err(Status::invalid_argument("start comes once")),
            None => return Err(Status::invalid_argument("a message of a save must have a part")),
        };
        check_extents(&entry)?;
        let refuse = |rule: &str| Status::invalid_argument(format!("base {} {rule}", shown(&entry.path)));
        let root = roots.of(&entry.path).ok_or_else(|| refuse("lies in none of the roots"))?;
        let place = Place { root, path: entry.path.to_vec() };
        if self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err(refuse("comes out of order"));
        }
        self.last = Some(place.clone());
        Ok(Some((place, entry.extents)))
    }
}

/// Checks that the extents of a file ascend, lie apart, and consist of proper chunks.
pub(super) fn check_extents(entry: &TreeEntry) -> Result<u64, Status> {
    let refuse = |rule: &str| Status::invalid_argument(format!("extents of {} {rule}", shown(&entry.path)));
    let mut end = 0_u64;
    for (number, extent) in entry.extents.iter().enumerate() {
        if extent.offset < end || (number > 0 && extent.offset == end) {
            return Err(refuse("must ascend and lie apart"));
        }
        end = extent.offset;
        if extent.chunks.is_empty() {
            return Err(refuse("must have chunks"));
        }
        for chunk in &extent.chunks {
            if chunk.hash.len() != HASH || chunk.length == 0 || chunk.length as usize > MAX_CHUNK {
                return Err(refuse("must have chunks of 1 to 4194304 bytes and hashes of 32"));
            }
            end = end.checked_add(u64::from(chunk.length)).ok_or_else(|| refuse("must end below 2^64"))?;
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::checkpoint::v1::Chunk;

    use super::*;

    fn extent(offset: u64, lengths: &[u32]) -> Extent {
        let chunks = lengths.iter().map(|length| Chunk { hash: vec![0; HASH].into(), length: *length });
        Extent { offset, chunks: chunks.collect() }
    }

    #[test]
    fn extents_must_ascend_apart_with_proper_chunks() {
        let check = |extents: &[Extent]| check_extents(&TreeEntry { extents: extents.to_vec(), ..Default::default() });
        assert_eq!(check(&[]).unwrap(), 0);
        assert_eq!(check(&[extent(0, &[1, 2]), extent(4, &[5])]).unwrap(), 9);
        let wrong = [
            vec![extent(0, &[])],
            vec![extent(0, &[0])],
            vec![extent(0, &[MAX_CHUNK as u32 + 1])],
            vec![extent(0, &[3]), extent(3, &[1])],
            vec![extent(9, &[3]), extent(3, &[1])],
            vec![extent(u64::MAX, &[1])],
        ];
        for extents in wrong {
            assert_eq!(check(&extents).unwrap_err().code(), tonic::Code::InvalidArgument, "{extents:?}");
        }
        let mut short = extent(0, &[1]);
        short.chunks[0].hash.truncate(31);
        assert!(check(&[short]).is_err());
    }
}
