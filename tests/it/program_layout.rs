//! How the program of images and packages is linked: what it needs while it waits lies side by side.

use std::{fs, path::Path, process::Command};

use crate::support::sources::root;

/// A program of many functions, of which two far from each other are wanted.
fn source() -> String {
    let names: Vec<String> = (0..200).map(|number| format!("function_{number:03}")).collect();
    let functions = names.iter().enumerate().map(|(number, name)| {
        format!(
            "#[inline(never)] fn {name}(x: u64) -> u64 {{ std::hint::black_box(x).rotate_left({number}) ^ {number} }}\n"
        )
    });
    let calls = names.iter().map(|name| format!("    x = {name}(x);\n"));
    let (functions, calls) = (functions.collect::<String>(), calls.collect::<String>());
    format!("{functions}fn main() {{\n    let mut x = 1;\n{calls}    println!(\"{{x}}\");\n}}\n")
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Links it by the project's own linker; addresses and symbols of its functions in the order in which they lie.
fn link(place: &Path, hot: &str, metadata: &str) -> Vec<(u64, String)> {
    let (source, list, program) = (place.join("source.rs"), place.join("hot.txt"), place.join("terrapool-layout"));
    fs::write(&source, self::source()).unwrap();
    fs::write(&list, hot).unwrap();
    let linker = format!("linker={}", root().join("deploy/program/hot-cc").display());
    let options = ["opt-level=1", "symbol-mangling-version=v0", &linker, metadata];
    let mut rustc = Command::new("rustc");
    rustc.args(options.iter().flat_map(|option| ["-C", option])).arg("-o").arg(&program).arg(&source);
    output(rustc.env("TERRAPOOL_HOT_LIST", &list));
    output(&mut Command::new(&program));
    let symbols = output(Command::new("nm").arg("--numeric-sort").arg(&program));
    let line = |line: &str| {
        let [address, _, symbol] = line.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
        Some((u64::from_str_radix(address, 16).ok()?, symbol.to_owned()))
    };
    symbols.lines().filter_map(line).filter(|(_, symbol)| symbol.contains("function_")).collect()
}

fn place_of(functions: &[(u64, String)], name: &str) -> usize {
    functions.iter().position(|(_, symbol)| symbol.contains(name)).unwrap_or_else(|| panic!("no {name}: {functions:?}"))
}

#[test]
fn what_the_list_names_lies_side_by_side_also_in_the_next_build() {
    let place = tempfile::tempdir().unwrap();
    let wanted = ["function_190", "function_010"];
    let usual = link(place.path(), "", "metadata=one");
    let distance = usual[place_of(&usual, wanted[0])].0.abs_diff(usual[place_of(&usual, wanted[1])].0);
    assert!(distance > 1_000, "{distance}");
    let short = |name: &str| {
        let names = root().join("deploy/program");
        let program = "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1])\n\
                       import names; print(names.short(sys.argv[2]))";
        let symbol = &usual[place_of(&usual, name)].1;
        output(Command::new("python3").args(["-c", program]).arg(names).arg(symbol))
    };
    let list: String = wanted.map(short).concat();
    // Another version of the crate has other symbols.
    for metadata in ["metadata=one", "metadata=two"] {
        let functions = link(place.path(), &list, metadata);
        let places = wanted.map(|name| place_of(&functions, name));
        assert_eq!(places, [0, 1], "{metadata}: in the order of the list, before all others");
        let distance = functions[places[0]].0.abs_diff(functions[places[1]].0);
        assert!(distance < 100, "{metadata}: {distance}");
    }
}

#[test]
fn the_list_names_functions_and_nothing_twice() {
    let text = fs::read_to_string(root().join("deploy/program/hot.txt")).unwrap();
    let names: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(names.len() > 1_000, "{} names", names.len());
    let hexadecimal = |name: &&str| name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let odd: Vec<_> = names.iter().filter(|name| !hexadecimal(name)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    let mut once = names.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), names.len());
}
