//! What a role prints when it is up: for the person who started it, and for the script that waits for it.

/// Names and addresses, two commands to paste if there is something to try, and `ready` on a line of its own.
pub(super) fn print(role: &str, addresses: &[(&'static str, String)], coordinator: Option<&str>) {
    println!("streaming {} {role}", env!("CARGO_PKG_VERSION"));
    for (name, address) in addresses {
        println!("  {name:<12} {address}");
    }
    if let Some(coordinator) = coordinator {
        let binary = std::env::args().next().unwrap_or_else(|| "streaming".into());
        println!();
        println!("{binary} produce --coordinator {coordinator} --file README.md");
        println!("{binary} consume --coordinator {coordinator} --from earliest --until-idle 1s");
        println!();
    }
    println!("ready");
}
