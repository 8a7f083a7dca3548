//! Who makes what: each image and each layer is made by one call at a time, and the others wait and find it; and which
//! layers are needed although no image has them yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A turn that somebody has.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// A turn for each name.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Arc<AsyncMutex<()>>>>);

impl Turns {
    /// Waits until nobody else has the turn of this name.
    pub(crate) async fn take(&self, name: String) -> Turn {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(name).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// The layers that calls under way need, with how many of these.
#[derive(Default)]
pub(crate) struct Pins(Mutex<HashMap<String, usize>>);

impl Pins {
    /// Keeps layers until the guard is dropped.
    pub(crate) fn pin(self: &Arc<Self>, layers: Vec<String>) -> Pinned {
        let mut pins = self.lock();
        for layer in &layers {
            *pins.entry(layer.clone()).or_default() += 1;
        }
        drop(pins);
        Pinned { pins: self.clone(), layers }
    }

    /// While this is held, nothing is pinned, and nothing is let go.
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Layers that stay.
pub(crate) struct Pinned {
    pins: Arc<Pins>,
    layers: Vec<String>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        for layer in &self.layers {
            if let Some(count) = pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(layer);
                }
            }
        }
    }
}
