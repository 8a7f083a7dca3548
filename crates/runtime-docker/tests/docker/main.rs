//! The Docker runtime on a real daemon, which `CLOUD_SANDBOX_TEST_DOCKER` names, with the image `CLOUD_SANDBOX_TEST_IMAGE`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod life;
mod rig;
