//! cygnet-ike
