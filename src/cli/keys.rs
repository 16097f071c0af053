//! `fabstir key`: encrypted keystores.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;

use super::{Fault, Global, print_json};
use crate::chain::key;

/// Where the key and its password lie.
#[derive(Debug, Clone, clap::Args)]
pub struct KeyFiles {
    /// The encrypted key.
    #[arg(long, value_name = "FILE")]
    keystore: PathBuf,
    /// A file only you may read (mode 600) with the password on its first line.
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a new random key.
    New(KeyFiles),
    /// Encrypt an existing private key, read in hex from standard input.
    Import(KeyFiles),
    /// Print the address of a key.
    Address(KeyFiles),
}

/// Runs `fabstir key`.
pub fn key(global: &Global, command: &KeyCommand) -> Result<()> {
    let signer = match command {
        KeyCommand::New(files) => key::create(&files.keystore, &key::password(&files.password_file)?),
        KeyCommand::Import(files) => {
            let hex = std::io::read_to_string(std::io::stdin()).context("read the key from standard input")?;
            key::import(&files.keystore, &key::password(&files.password_file)?, &hex)
        }
        KeyCommand::Address(files) => key::open(&files.keystore, &files.password_file),
    };
    let address = signer.map_err(|error| Fault::Usage.of(error))?.address();
    if global.json {
        return print_json(&json!({ "address": address }));
    }
    println!("{address}");
    Ok(())
}
