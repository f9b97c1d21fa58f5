//! Statistics of weights as rows of a table, on the demo model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_measure::table::{Table, Value};
use packhost_measure::tiers::Profile;
use packhost_measure::windows::{Selection, WindowPlan, Windows};
use packhost_measure::{Baseline, MeasureRequest, Request, TIED_HEAD, measure};
use packhost_model::{Checkpoint, Overlay, Weights};
use packhost_tensor::cpu::Cpu;
use packhost_tensor::{DType, Tensor};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

const EMBEDDING: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.2.mlp.up_proj.weight";
const NORM: &str = "model.layers.2.input_layernorm.weight";

fn demo() -> Arc<Checkpoint> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scenarios/demo/model");
    Checkpoint::open(Path::new(folder)).unwrap()
}

fn wish(quantity: &str, scope: &str, params: &str) -> Request {
    Request {
        guard: "test".into(),
        quantity: quantity.into(),
        scope: scope.into(),
        params: params.into(),
    }
}

fn everything() -> Vec<Request> {
    [
        "weight.sigma.ones.4",
        "weight.sigma.e0.2",
        "weight.sigma.hashed.8",
        "weight.frobenius_sq",
        "weight.row_norms",
        "weight.column_norms",
        "weight.singular",
        "weight.zeros",
        "weight.shift",
        "weight.overlap",
        "tensor.non_finite",
        "tensor.shape",
    ]
    .into_iter()
    .map(|quantity| wish(quantity, "*", ""))
    .collect()
}

fn no_windows() -> Windows {
    Windows {
        preview: Vec::new(),
        final_: Vec::new(),
        plan: WindowPlan {
            seq_len: 8,
            preview: 1,
            final_: 1,
            seed: 42,
            run: 0,
            selection: Selection::FileOrder,
            profile: Profile::Dev,
        },
        pad: 0,
        short: 0,
        duplicates: 0,
        reductions: Vec::new(),
    }
}

fn table(
    weights: &dyn Weights,
    requests: &[Request],
    baseline: Option<Baseline<'_>>,
    threads: usize,
) -> Result<Table, String> {
    let device = Cpu::new(Some(threads)).unwrap();
    let request = MeasureRequest {
        weights,
        device: &device,
        windows: &no_windows(),
        requests,
        baseline,
        keep: None,
        probe: None,
        cancel: None,
    };
    let measured = device.install(|| measure(&request));
    measured.map(|m| m.table).map_err(|error| error.to_string())
}

fn of_subject(base: &Table, subject: &Overlay, requests: &[Request]) -> Table {
    let changed: BTreeSet<String> = subject.changed().keys().cloned().collect();
    let baseline = Baseline {
        weights: &**subject.base(),
        table: base,
        changed: &changed,
        reference: None,
        hidden: None,
        moments: None,
    };
    table(subject, requests, Some(baseline), 2).unwrap()
}

fn refusal(quantity: &str, scope: &str, params: &str) -> String {
    table(&*demo(), &[wish(quantity, scope, params)], None, 1).unwrap_err()
}

#[test]
fn rows_are_bit_stable_and_cover_what_the_scope_names() {
    let base = demo();
    let once = table(&*base, &everything(), None, 1).unwrap();
    for threads in [2, 5] {
        let again = table(&*base, &everything(), None, threads).unwrap();
        assert_eq!(again.to_json(), once.to_json());
    }
    // 44 matrices; the 13 norms have counts only, and a baseline is compared with nothing.
    let count = |quantity: &str| once.rows().filter(|row| row.quantity == quantity).count();
    assert_eq!(count("weight.sigma.ones.4"), 44);
    assert_eq!(count("weight.singular"), 44);
    assert_eq!(count("weight.zeros"), 57);
    assert_eq!(count("tensor.non_finite"), 57);
    assert_eq!(count("weight.shift") + count("weight.overlap"), 0);
    assert_eq!(once.vector(UP, "weight.singular").unwrap().len(), 9);
    assert_eq!(once.vector(UP, "weight.row_norms").unwrap().len(), 3);

    let one = [wish("weight.frobenius_sq", "role:ffn-up", "{}")];
    let of_role = table(&*base, &one, None, 2).unwrap();
    assert_eq!(of_role.len(), 6);
    assert_eq!(
        of_role.get(UP, "weight.frobenius_sq"),
        once.get(UP, "weight.frobenius_sq")
    );
    let one = [wish("weight.zeros", "layer:2", "")];
    assert_eq!(table(&*base, &one, None, 2).unwrap().len(), 9);
}

#[test]
fn only_what_changed_is_measured_and_compared() {
    let base = demo();
    let mut of_base = table(&*base, &everything(), None, 2).unwrap();
    let mut subject = Overlay::new(Arc::clone(&base));
    let up = base.tensor(UP).unwrap();
    let turned: Vec<f32> = up.to_f32().iter().map(|value| value * -2.0).collect();
    let turned = Tensor::from_f32(up.dtype(), up.shape(), &turned).unwrap();
    subject.put(UP, turned).unwrap();
    let norm = base.tensor(NORM).unwrap();
    subject
        .put(NORM, Tensor::zeros(DType::BF16, norm.shape()).unwrap())
        .unwrap();
    // A mark in the baseline's table shows where a row comes from.
    let mark = Value::Number(-1.0);
    of_base.put(EMBEDDING, "weight.frobenius_sq", mark.clone());
    let measured = of_subject(&of_base, &subject, &everything());
    assert_eq!(measured.get(EMBEDDING, "weight.frobenius_sq"), Some(&mark));

    let shift = measured.vector(UP, "weight.shift").unwrap();
    assert!((shift[0] / shift[1] - 9.0).abs() < 1e-5, "{shift:?}");
    let overlap = measured.number(UP, "weight.overlap").unwrap();
    assert!((overlap - 1.0).abs() < 1e-5, "{overlap}");
    let sigma = |table: &Table| table.number(UP, "weight.sigma.ones.4").unwrap();
    assert_eq!(sigma(&measured), 2.0 * sigma(&of_base));
    let singular = |table: &Table| table.vector(UP, "weight.singular").unwrap()[0];
    assert!((singular(&measured) / singular(&of_base) - 2.0).abs() < 1e-6);

    let shift = measured.vector(NORM, "weight.shift").unwrap();
    assert_eq!(shift[0], shift[1]);
    assert_eq!(
        measured.number(NORM, "weight.zeros"),
        Some(norm.len() as f64)
    );
    assert!(measured.get(NORM, "weight.overlap").is_none());
    let shifts = measured.rows().filter(|row| row.quantity == "weight.shift");
    assert_eq!(shifts.count(), 2);
}

#[test]
fn a_subject_may_lose_or_reshape_a_weight_and_hold_values_that_are_no_numbers() {
    let base = demo();
    let requests = [
        wish("weight.sigma.ones.4", UP, ""),
        wish("weight.shift", "*", ""),
        wish("tensor.non_finite", "*", ""),
    ];
    let of_base = table(&*base, &requests, None, 2).unwrap();
    let up = base.tensor(UP).unwrap();
    let mut subject = Overlay::new(Arc::clone(&base));
    subject.remove(UP).unwrap();
    let lost = of_subject(&of_base, &subject, &requests);
    assert!(lost.get(UP, "weight.sigma.ones.4").is_none());
    subject.put(UP, up.with_shape([up.len()]).unwrap()).unwrap();
    let flat = of_subject(&of_base, &subject, &requests);
    assert!(flat.get(UP, "weight.sigma.ones.4").is_none());
    assert!(flat.get(UP, "weight.shift").is_none());
    assert_eq!(flat.number(UP, "tensor.non_finite"), Some(0.0));
    let mut values = up.to_f32();
    values[5] = f32::NAN;
    let bad = Tensor::from_f32(up.dtype(), up.shape(), &values).unwrap();
    subject.put(UP, bad).unwrap();
    let bad = of_subject(&of_base, &subject, &requests);
    assert_eq!(bad.number(UP, "tensor.non_finite"), Some(1.0));
    assert_eq!(bad.number(UP, "weight.sigma.ones.4"), Some(0.0));
    assert!(bad.vector(UP, "weight.shift").unwrap()[0].is_nan());
}

#[test]
fn a_tied_head_is_a_weight_of_its_own() {
    let base = demo();
    let requests = everything();
    let mut tied = Overlay::new(Arc::clone(&base));
    let mut config = base.config_json().clone();
    config["tie_word_embeddings"] = true.into();
    tied.set_config(config).unwrap();
    // The file still has a head, but the embedding is used.
    let stored = table(&tied, &requests, None, 2).unwrap();
    let embedding = stored.get(EMBEDDING, "weight.singular").cloned();
    assert!(embedding.is_some());
    assert_eq!(stored.get(TIED_HEAD, "weight.singular").cloned(), embedding);
    assert!(stored.get(TIED_HEAD, "tensor.shape").is_some());
    // It is not in the file.
    tied.remove(TIED_HEAD).unwrap();
    for scope in ["*", TIED_HEAD, "role:lm-head"] {
        let one = [wish("weight.singular", scope, "")];
        let absent = table(&tied, &one, None, 2).unwrap();
        assert_eq!(absent.get(TIED_HEAD, "weight.singular").cloned(), embedding);
    }
    let one = [wish("weight.singular", "layer:0", "")];
    assert!(
        table(&tied, &one, None, 2)
            .unwrap()
            .get(TIED_HEAD, "weight.singular")
            .is_none()
    );
    // A changed embedding changes its head.
    let of_base = table(&*base, &requests, None, 2).unwrap();
    let values = base.tensor(EMBEDDING).unwrap();
    let shape = values.shape().to_vec();
    let values: Vec<f32> = values.to_f32().iter().map(|value| value * 4.0).collect();
    tied.put(
        EMBEDDING,
        Tensor::from_f32(DType::BF16, shape, &values).unwrap(),
    )
    .unwrap();
    let measured = of_subject(&of_base, &tied, &requests);
    assert_eq!(
        measured.get(TIED_HEAD, "weight.singular"),
        measured.get(EMBEDDING, "weight.singular")
    );
    let against_head = measured.vector(TIED_HEAD, "weight.shift").unwrap()[1];
    assert_eq!(
        Some(against_head),
        of_base.number(TIED_HEAD, "weight.frobenius_sq").map(|_| {
            let head = base.tensor(TIED_HEAD).unwrap();
            use packhost_tensor::Device;
            Cpu::new(Some(1))
                .unwrap()
                .shift(&head, &head)
                .unwrap()
                .base_sq
        })
    );
}

#[test]
fn what_cannot_be_measured_is_refused_in_words() {
    let error = refusal("weight.rank", "*", "");
    assert!(
        error.starts_with(
            "guard test asks for quantity `weight.rank` of `*`, which is no statistic"
        )
    );
    let error = refusal("weight.sigma.twos.4", "*", "");
    assert!(
        error.ends_with("whose start must be `ones`, `e0` or `hashed`, not `twos`"),
        "{error}"
    );
    let error = refusal("weight.sigma.ones.0", "*", "");
    assert!(error.contains("from 1 to 100, not `0`"), "{error}");
    let error = refusal("weight.singular", NORM, "");
    assert!(
        error.ends_with(
            "none is named there (`model.layers.2.input_layernorm.weight` is BF16 of shape [128])"
        ),
        "{error}"
    );
    assert!(refusal("weight.frobenius_sq", "role:norm", "").contains("float matrices"));
    assert!(refusal("weight.zeros", "role:nothing", "").contains("no role `nothing`"));
    assert!(refusal("weight.zeros", "layer:x", "").contains("not a layer's number"));
    let error = refusal("weight.zeros", "*", r#"{"a":1}"#);
    assert!(
        error.contains(r#"no parameters, with `{"a":1}`"#),
        "{error}"
    );
    // A scope that names nothing at all is fine: the model may not have it.
    let one = [wish("weight.singular", "router.*", "")];
    assert!(table(&*demo(), &one, None, 1).unwrap().is_empty());
}

#[test]
fn a_row_names_its_parameters() {
    assert_eq!(wish("q", "s", "").row_scope("a"), "a");
    assert_eq!(wish("q", "s", "{}").row_scope("a"), "a");
    assert_eq!(
        wish("q", "s", r#"{"k": 2}"#).row_scope("a"),
        r#"a {"k": 2}"#
    );
}
