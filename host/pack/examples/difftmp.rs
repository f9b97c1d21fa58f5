//! throwaway
use packhost_pack::report_rules::*;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut out = serde_json::Map::new();
    for (p, a) in [("release", "strict"), ("dev", "report"), ("ci", "off")] {
        for i in 0..n {
            let d = format!("/tmp/diff/m/{i}/");
            let b = std::fs::read(format!("{d}evaluation.report.json")).unwrap();
            let r: serde_json::Value = serde_json::from_slice(&b).unwrap();
            let t: serde_json::Value = serde_json::from_slice(
                &std::fs::read(format!("{d}runtime.manifest.json")).unwrap(),
            )
            .unwrap();
            let prof = Profile::named(p);
            let c = check(
                &r,
                &packhost_pack::digest::hex(&b),
                &RuntimeManifest::Found(t),
                Rules {
                    profile: prof,
                    assurance: Assurance::named(a).unwrap(),
                    skip_provenance: false,
                },
            );
            let has = |k| c.faults.iter().any(|f| f.kind == k);
            let (reason, code) = if has(Kind::Schema) {
                ("malformed", "E601")
            } else if prof != Profile::Dev && has(Kind::Evidence) {
                ("policy_fail", "E004")
            } else if prof != Profile::Dev && has(Kind::Mismatch) {
                ("policy_fail", "E602")
            } else if !c.faults.is_empty() {
                ("policy_fail", "")
            } else {
                ("ok", "")
            };
            out.insert(
                format!("{p} {a} {i}"),
                serde_json::json!([
                    reason == "ok",
                    reason,
                    code,
                    c.faults
                        .iter()
                        .map(|f| format!("{}: {}", f.rule, f.message))
                        .collect::<Vec<_>>()
                ]),
            );
        }
    }
    std::fs::write(
        "/tmp/diff/ours.json",
        serde_json::Value::Object(out).to_string(),
    )
    .unwrap();
}
