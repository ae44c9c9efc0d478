//! Implementations of [`cygnet_model::plane::DataPlane`].

pub mod user;
