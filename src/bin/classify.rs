//! The standalone binary: parse, classify, exit code.

fn main() -> std::process::ExitCode {
    engine::classify::main()
}
