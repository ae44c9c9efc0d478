//! The bandwidth of gateways: a plan as a value ([`plan`]), and its way into the kernel ([`apply`]).

pub mod apply;
pub mod plan;
