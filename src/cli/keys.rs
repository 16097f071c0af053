//! `fabstir key`: encrypted keystores.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;

use super::stake::section;
use super::{Fault, Global, configuration, print_json};
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
    /// Print the address of a key: of the configured host's, whoever keeps it, where no file is named.
    Address(AddressOf),
}

/// As [`KeyFiles`], both or none.
#[derive(Debug, Clone, clap::Args)]
pub struct AddressOf {
    /// The encrypted key.
    #[arg(long, value_name = "FILE", requires = "password_file")]
    keystore: Option<PathBuf>,
    /// A file only you may read (mode 600) with the password on its first line.
    #[arg(long, value_name = "FILE", requires = "keystore")]
    password_file: Option<PathBuf>,
}

/// Runs `fabstir key`.
pub async fn key(global: &Global, command: &KeyCommand) -> Result<()> {
    let signer = match command {
        KeyCommand::New(files) => key::create(&files.keystore, &key::password(&files.password_file)?),
        KeyCommand::Import(files) => {
            let hex = std::io::read_to_string(std::io::stdin()).context("read the key from standard input")?;
            key::import(&files.keystore, &key::password(&files.password_file)?, &hex)
        }
        KeyCommand::Address(AddressOf { keystore: Some(keystore), password_file: Some(password_file) }) => {
            key::open(keystore, password_file)
        }
        KeyCommand::Address(_) => section(&configuration(global)?, global)?.account().await,
    };
    let address = signer.map_err(|error| Fault::Usage.of(error))?.address();
    if global.json {
        return print_json(&json!({ "address": address }));
    }
    println!("{address}");
    Ok(())
}
