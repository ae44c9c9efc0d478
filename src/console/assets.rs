//! What a browser loads: part of the binary, and nothing from anywhere else.

/// A file of the console.
pub struct Asset {
    /// What it is.
    pub content_type: &'static str,
    /// Its octets.
    pub bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The file of a path.
pub fn get(path: &str) -> Option<Asset> {
    let (content_type, bytes): (_, &[u8]) = match path {
        "/" => (HTML, include_bytes!("assets/index.html")),
        "/console.css" => ("text/css; charset=utf-8", include_bytes!("assets/console.css")),
        "/console.js" => (SCRIPT, include_bytes!("assets/console.js")),
        "/chart.js" => (SCRIPT, include_bytes!("assets/chart.js")),
        "/table.js" => (SCRIPT, include_bytes!("assets/table.js")),
        "/text.js" => (SCRIPT, include_bytes!("assets/text.js")),
        "/icon.svg" => ("image/svg+xml", include_bytes!("assets/icon.svg")),
        _ => return None,
    };
    Some(Asset { content_type, bytes })
}
