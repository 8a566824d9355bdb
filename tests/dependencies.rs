//! `.deny.toml`, checked against what Cargo resolves: licences, bans, sources.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::process::Command;

use serde_json::Value;
use toml::Table;

use crate::root;

#[test]
fn licences_are_on_the_list() {
    let allowed = strings(&rules()["licenses"]["allow"], "");
    let mut wrong = Vec::new();
    for package in packages() {
        let expression = package["license"].as_str().unwrap_or("none").replace('/', " OR ");
        if !allows(&allowed, &expression) {
            wrong.push(format!("{}: {expression}", package["name"]));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn banned_crates_stay_out() {
    let banned = strings(&rules()["bans"]["deny"], "crate");
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        assert!(!banned.contains(name), "{name} is banned by .deny.toml");
    }
}

#[test]
fn everything_comes_from_a_registry_or_from_here() {
    let rules = rules();
    assert_eq!(rules["sources"]["unknown-git"].as_str(), Some("deny"));
    assert_eq!(rules["sources"]["unknown-registry"].as_str(), Some("deny"));
    for package in packages() {
        let name = &package["name"];
        match package["source"].as_str() {
            None => {
                let manifest = package["manifest_path"].as_str().unwrap();
                assert!(manifest.starts_with(root().to_str().unwrap()), "{name}: {manifest}");
            }
            Some(source) => assert!(source.starts_with("registry+"), "{name}: {source}"),
        }
    }
}

#[test]
fn an_expression_is_read_as_it_is_meant() {
    let allowed = ["MIT", "Apache-2.0"].map(str::to_owned).into_iter().collect();
    for good in ["MIT", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND Apache-2.0"] {
        assert!(allows(&allowed, good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0 WITH X-exception", "(MIT) AND (GPL-3.0)"]
    {
        assert!(!allows(&allowed, bad), "{bad}");
    }
}

fn rules() -> Table {
    fs::read_to_string(root().join(".deny.toml")).unwrap().parse().unwrap()
}

/// The strings of an array, or the field `key` of its tables.
fn strings(array: &toml::Value, key: &str) -> BTreeSet<String> {
    let text = |value: &toml::Value| {
        let text = value.as_str().or_else(|| value.get(key)?.as_str());
        text.unwrap().to_owned()
    };
    array.as_array().unwrap().iter().map(text).collect()
}

/// All packages that are built on this kind of machine.
fn packages() -> Vec<Value> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    // `packages` lists every platform's; the resolved graph only this one's
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| used.contains(package["id"].as_str().unwrap())).cloned().collect()
}

/// Whether a licence expression can be met: OR binds weaker than AND, brackets bind strongest.
fn allows(allowed: &BTreeSet<String>, expression: &str) -> bool {
    split(expression, " OR ").iter().any(|option| {
        split(option, " AND ").iter().all(|term| {
            let term = term.trim();
            match term.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
                Some(inner) => allows(allowed, inner),
                None => allowed.contains(term),
            }
        })
    })
}

/// Splits at `word`, outside brackets.
fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 && at >= start && text[at..].starts_with(word) {
            parts.push(&text[start..at]);
            start = at + word.len();
        }
    }
    parts.push(&text[start..]);
    parts
}
