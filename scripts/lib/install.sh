# shellcheck shell=bash
# Installs what is missing on a Debian host. Sourced by scripts that promise to work on a bare machine.

# Installs packages that dpkg does not know as installed; silent if there are none.
need_packages() { # PACKAGE...
    local package missing=()
    for package in "$@"; do
        if [[ $(dpkg-query -Wf '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            missing+=("$package")
        fi
    done
    if ((${#missing[@]} == 0)); then return 0; fi
    echo "installing ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# Makes the pinned Rust toolchain available, by rustup if there is no cargo.
need_rust() {
    export PATH=$HOME/.cargo/bin:$PATH
    local channel
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    if ! command -v cargo >/dev/null; then
        need_packages curl ca-certificates
        echo "installing Rust $channel"
        local url init
        url=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
        init=$PWD/target/rustup-init
        mkdir -p "$init"
        curl --proto '=https' --tlsv1.2 -sSf --retry 3 -o "$init/rustup-init" "$url"
        # With or without the file's name behind the digest.
        local digest
        digest=$(curl --proto '=https' --tlsv1.2 -sSf --retry 3 "$url.sha256")
        echo "${digest:0:64}  $init/rustup-init" | sha256sum --quiet --check -
        chmod +x "$init/rustup-init"
        "$init/rustup-init" -q -y --profile minimal --default-toolchain "$channel" -c rustfmt -c clippy
        rm -rf "$init"
    fi
    cargo --version >/dev/null
}

# Makes `cargo deny` available. What is missing is built into the tree, without optimisation: that takes a minute instead
# of five, and it runs for two seconds.
need_cargo_deny() {
    local tools=$PWD/target/tools
    export PATH=$PATH:$tools/bin
    if cargo deny --version >/dev/null 2>&1; then return 0; fi
    echo "installing cargo-deny"
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$tools/build cargo install --quiet --debug --locked \
        --no-default-features --root "$tools" cargo-deny@0.20.2
    rm -rf "$tools/build"
}
