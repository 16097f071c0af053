//! Parses the command line, calls one function, and turns its end into an exit code.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    fabstir::cli::main().await
}
