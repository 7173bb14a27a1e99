//! Machines that the image runs on, as commands that start them.

pub mod virt;
