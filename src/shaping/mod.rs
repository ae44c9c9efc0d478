//! The bandwidth of gateways: a plan as a value, and its way into the kernel.

