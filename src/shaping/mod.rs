//! The bandwidth of gateways: a plan as a value ([`plan`]), its way into the kernel ([`apply`]), and quiet meanwhile ([`pause`]).

pub mod apply;
pub mod pause;
pub mod plan;
