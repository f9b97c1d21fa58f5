//! The targets. Each states what must hold of any bytes, beside that nothing panics.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use packhost_measure::table::Table;
use packhost_model::Header;
use packhost_pack::checksums::{self, Form};
use packhost_pack::policy::Policy;
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{canonical, json, manifest, signature, verdict};
use packhost_tensor::DType;
use packhost_tensor::program::{Comparison, Op, Program, Rounding, Span, Statistic};

/// Every target by name.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("checksums", checksum_list),
    ("header", header),
    ("json", canonical_json),
    ("manifest", pack_manifest),
    ("pack", pack),
    ("policy", policy),
    ("program", program),
    ("scenarios", scenarios),
    ("signature", bundle),
    ("table", table),
];

/// Canonical JSON is its own canonical form, in both spellings.
fn canonical_json(bytes: &[u8]) {
    let Ok(document) = json::parse(bytes) else {
        return;
    };
    for spell in [canonical::to_line, canonical::to_pretty] {
        let text = spell(&document.value);
        let again = json::parse(text.as_bytes()).expect("our own text is JSON");
        assert!(again.repeated.is_empty());
        assert_eq!(spell(&again.value), text);
    }
}

/// What was read of a list is read again from what is written of it.
fn checksum_list(bytes: &[u8]) {
    let list = checksums::parse(bytes);
    let written = checksums::write(&list.lines, Form::V2);
    let again = checksums::parse(&written);
    assert_eq!(again.lines.len(), list.lines.len());
}

fn pack_manifest(bytes: &[u8]) {
    if let Ok(document) = json::parse(bytes) {
        let _ = manifest::schema_faults(&document.value);
        let _ = manifest::references(&document.value);
        let _ = manifest::evidence_level(&document.value);
    }
}

fn scenarios(bytes: &[u8]) {
    if let Ok(document) = json::parse(bytes) {
        let _ = verdict::scenarios(&document.value);
    }
}

/// A bundle over a fixed manifest: whoever signed, a signer is named only with a signature that fits.
fn bundle(bytes: &[u8]) {
    let manifest = include_bytes!("../../vectors/evidence-pack/packs/minimal/manifest.json");
    let document = json::parse(manifest).expect("the vector is JSON").value;
    let _ = signature::check(bytes, manifest, &document, &BTreeSet::new());
    let other = signature::check(bytes, b"{}", &document, &BTreeSet::new());
    assert!(other.signer.is_none() || !other.faults.is_empty());
}

/// The smallest good pack with one file replaced: only its own bytes are accepted where a digest or the signature covers them.
fn pack(bytes: &[u8]) {
    const FILES: [&str; 6] = [
        "manifest.json",
        "checksums.sha256",
        "manifest.signature.json",
        "results/final_verdict.json",
        "reports/report-001/evaluation.report.json",
        "reports/report-001/runtime.manifest.json",
    ];
    thread_local! {
        static PACK: tempfile::TempDir = {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors/evidence-pack/packs/minimal");
            let dir = tempfile::tempdir().expect("a temporary folder");
            copy(&from, dir.path());
            dir
        };
    }
    let Some((which, content)) = bytes.split_first() else {
        return;
    };
    let name = FILES[usize::from(*which) % FILES.len()];
    PACK.with(|pack| {
        let path = pack.path().join(name);
        let original = fs::read(&path).expect("a file of the vector");
        fs::write(&path, content).expect("the file is ours");
        let verification = verify(pack.path(), &VerifyOptions::default());
        fs::write(&path, &original).expect("the file is ours");
        let signed = name != "manifest.signature.json";
        assert!(!verification.ok() || !signed || content == original);
    });
}

/// A trust policy is read or refused with reasons.
fn policy(bytes: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a temporary folder");
    }
    FOLDER.with(|folder| {
        let path = folder.path().join("policy.toml");
        fs::write(&path, bytes).expect("the file is ours");
        if let Err(faults) = Policy::read(&path) {
            assert!(!faults.is_empty());
        }
    });
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a temporary folder");
    for entry in fs::read_dir(from).expect("the vector") {
        let path = entry.expect("the vector").path();
        let target = to.join(path.file_name().expect("it has a name"));
        match path.is_dir() {
            true => copy(&path, &target),
            false => fs::write(target, fs::read(&path).expect("the vector")).expect("ours"),
        }
    }
}

/// A header that is accepted tiles the file, and is accepted again as it is written.
fn header(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    let data: usize = header
        .entries
        .iter()
        .map(|entry| entry.end - entry.start)
        .sum();
    assert_eq!(header.data_start + data, bytes.len());
    let mut file = header.to_bytes();
    file.extend(&bytes[header.data_start..]);
    let again = Header::parse(&file).expect("what is written is read");
    assert_eq!(again.entries, header.entries);
}

/// A table has one text.
fn table(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(table) = Table::parse(text)
    {
        assert_eq!(table.to_json(), text);
    }
}

/// Any list of operations is checked without a panic, and one that is accepted keeps its operations.
fn program(bytes: &[u8]) {
    let ops: Vec<Op> = bytes.chunks(2).map(op).collect();
    if let Ok(program) = Program::check(&ops) {
        assert!(program.leaves_value() || !program.measures().is_empty());
        assert!(program.inputs() <= 256 && program.scalars() <= 256);
    }
}

/// An operation of two bytes: which, and of what kind.
fn op(bytes: &[u8]) -> Op {
    let kind = bytes.get(1).copied().unwrap_or_default();
    match bytes[0] % 24 {
        0 => Op::Input(kind),
        1 => Op::Scalar(kind),
        2 => Op::Constant(f32::from(kind) - 128.0),
        3 => Op::Add,
        4 => Op::Sub,
        5 => Op::Mul,
        6 => Op::Div,
        7 => Op::Min,
        8 => Op::Max,
        9 => Op::Neg,
        10 => Op::Abs,
        11 => Op::Sqrt,
        12 => Op::Exp2,
        13 => Op::Log2,
        14 => Op::Round(Rounding::HalfEven),
        15 => Op::Compare(Comparison::Lt),
        16 => Op::Select,
        17 => Op::IsFinite,
        18 => Op::CopySign,
        19 => Op::Cast(DType::BF16, kind % 2 == 0),
        20 => Op::Reduce(
            Statistic::Sum,
            [
                Span::Group(u32::from(kind)),
                Span::Row,
                Span::Column,
                Span::Whole,
            ][usize::from(kind) % 4],
        ),
        21 => Op::Measure(Statistic::Sum),
        22 => Op::Duplicate,
        _ => Op::Swap,
    }
}
