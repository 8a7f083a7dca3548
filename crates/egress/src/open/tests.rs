//! A sandbox's kernel at the other end of the packets, played by a stack like the node's own.

mod flows;
mod garbage;
mod world;
