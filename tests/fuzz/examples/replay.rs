//! Runs inputs through a target: `cargo run -p cygnet-fuzz --example replay -- TARGET FILE...`

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    let Some((_, target)) = cygnet_fuzz::TARGETS.iter().find(|(n, _)| *n == name) else {
        let names: Vec<&str> = cygnet_fuzz::TARGETS.iter().map(|(n, _)| *n).collect();
        eprintln!("usage: replay TARGET FILE...\ntargets: {}", names.join(" "));
        return ExitCode::from(2);
    };
    for file in args {
        match std::fs::read(&file) {
            Ok(input) => {
                eprintln!("{file}");
                target(&input);
            }
            Err(e) => {
                eprintln!("{file}: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
