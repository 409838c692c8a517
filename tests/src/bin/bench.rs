//! `cargo xtask bench`: figures of the packet path and of the agent.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    lb_tests::bench::run(&arguments)
}
