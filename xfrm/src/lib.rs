//! cygnet-xfrm
pub mod link;
pub mod route;
