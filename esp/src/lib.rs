//! cygnet-esp
