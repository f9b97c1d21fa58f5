//! Comparing one subject with its baseline: measure both on the same windows, let the guards judge, put the report
//! together. The command `evaluate` and every task of a run go through here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use packhost_measure::dataset::DatasetIdentity;
use packhost_measure::report::{EditIdentity, Judged, ModelIdentity, ReportInputs};
use packhost_measure::table::Table;
use packhost_measure::tiers::{MetricOptions, Policies};
use packhost_measure::windows::Windows;
use packhost_measure::{
    Baseline, FeatureMoments, MeasureRequest, Measured, Request, measure, needs_predictions,
};
use packhost_model::Weights;
use packhost_model::network::{HiddenCache, KeepPolicy, Reference};
use packhost_tensor::cpu::Cpu;
use serde_json::Value;

use crate::convert::model_info;
use crate::guards::{Guards, Measurements, Plan};
use crate::run::bound;
use crate::{Result, judging};

/// One minus the level of the metric's intervals.
pub const ALPHA: f64 = 0.05;

/// What every evaluation of a run shares.
pub struct Evaluator<'a> {
    pub device: &'a Cpu,
    pub guards: &'a Guards,
    pub dataset: DatasetIdentity<'a>,
    /// Time of the reports, RFC 3339.
    pub timestamp: &'a str,
    /// Bytes of hidden states to keep of a baseline, so that subjects start at their first changed layer.
    pub hidden_bytes: u64,
    pub cancel: &'a AtomicBool,
}

/// A baseline, measured on the windows of one seed.
pub struct MeasuredBaseline {
    pub windows: Windows,
    pub identity: ModelIdentity,
    pub requests: Vec<Request>,
    pub table: Table,
    reference: Option<Reference>,
    hidden: Option<HiddenCache>,
    moments: FeatureMoments,
}

/// A subject to evaluate.
pub struct SubjectInput<'a> {
    pub weights: &'a dyn Weights,
    /// The baseline's weights.
    pub base: &'a dyn Weights,
    pub identity: ModelIdentity,
    pub edit: EditIdentity,
    /// Names of the tensors that differ from the baseline.
    pub changed: BTreeSet<String>,
    /// Digest of the list of changes, which the subject's table then names.
    pub changes: Option<String>,
    /// What the report says of the run's settings; null outside a run.
    pub settings: Value,
    /// Guards whose probe is run as well.
    pub probes: BTreeSet<String>,
}

/// What came out. With the baseline's own table these tables hold every row that a guard saw, so the verdict can be judged
/// again from them (see [`crate::replay`]).
pub struct Evaluation {
    pub report: Value,
    /// The subject's measurements, those of further rounds included.
    pub table: Table,
    /// What was measured of the baseline in further rounds and for probes, beside its own table.
    pub rounds: Table,
    pub judged: Vec<Judged>,
    /// Answers of the probes that were asked for, by guard.
    pub probes: BTreeMap<String, Value>,
}

impl Evaluator<'_> {
    /// What of `requests` is the same on any windows: rows about weights and structure.
    ///
    /// # Errors
    /// A guard asks for what cannot be measured, or a tensor cannot be read.
    pub fn fixed(
        &self,
        weights: &dyn Weights,
        windows: &Windows,
        requests: &[Request],
    ) -> Result<Table> {
        let fixed = requests.iter().filter(|r| !needs_predictions(&r.quantity));
        let fixed: Vec<Request> = fixed.cloned().collect();
        Ok(self.measure(weights, windows, &fixed, None, None)?.table)
    }

    /// Measures a baseline. `fixed` are its rows that do not depend on the windows.
    ///
    /// # Errors
    /// It cannot be run: a baseline that fails structurally is no baseline.
    pub fn baseline(
        &self,
        weights: &dyn Weights,
        identity: ModelIdentity,
        windows: Windows,
        requests: Vec<Request>,
        fixed: &Table,
    ) -> Result<MeasuredBaseline> {
        let keep = KeepPolicy {
            reference: true,
            hidden_bytes: self.hidden_bytes,
        };
        let on_windows = requests.iter().filter(|r| needs_predictions(&r.quantity));
        let on_windows: Vec<Request> = on_windows.cloned().collect();
        let measured = self.measure(weights, &windows, &on_windows, None, Some(keep))?;
        if let Some(message) = measured.structural_failure {
            return Err(crate::Error::BaselineFails {
                model: identity.model_id,
                message,
            });
        }
        let Measured {
            mut table,
            reference,
            hidden,
            moments,
            ..
        } = measured;
        table.copy_from(fixed, |_, _| true);
        Ok(MeasuredBaseline {
            windows,
            identity,
            requests,
            table,
            reference,
            hidden,
            moments,
        })
    }

    /// Measures a subject without judging it: a perturbation that guards are calibrated with.
    ///
    /// # Errors
    /// Measuring fails.
    pub fn measure_subject(
        &self,
        baseline: &MeasuredBaseline,
        subject: &SubjectInput<'_>,
    ) -> Result<Table> {
        Ok(self.against(baseline, subject, &baseline.requests)?.table)
    }

    /// Measures a subject, lets the guards judge and makes the report.
    ///
    /// # Errors
    /// Measuring or a guard fails. A subject that cannot be run is no error: its report says so.
    pub fn subject(
        &self,
        baseline: &MeasuredBaseline,
        subject: &SubjectInput<'_>,
        policies: &Policies,
        metric: MetricOptions,
    ) -> Result<Evaluation> {
        let plan = Plan {
            policies,
            metric: &metric,
            probes: &subject.probes,
        };
        let network = model_info(subject.base);
        let wanted = judging::wanted(self.guards, &plan, &network, &baseline.requests)?;
        let mut measured = self.against(baseline, subject, &wanted.all)?;
        if let Some(changes) = &subject.changes {
            bound::put(&mut measured.table, bound::CHANGES, changes);
        }
        let failure = measured.structural_failure;
        let mut known = Known {
            evaluator: self,
            baseline,
            subject,
            tables: (baseline.table.clone(), measured.table),
            rounds: Table::new(),
        };
        if failure.is_none() {
            known.measure_baseline(&wanted.of_probes)?;
        }
        let failure = failure.as_deref();
        let judged = judging::verdicts(self.guards, &plan, &wanted.all, failure, &mut known)?;
        let Known { tables, rounds, .. } = known;
        let inputs = ReportInputs {
            timestamp: self.timestamp,
            host_version: env!("CARGO_PKG_VERSION"),
            device: "cpu",
            subject: &subject.identity,
            baseline: &baseline.identity,
            edit: &subject.edit,
            dataset: self.dataset,
            windows: &baseline.windows,
            baseline_table: &baseline.table,
            baseline_rounds: &rounds,
            subject_table: &tables.1,
            policies,
            metric,
            guards: &judged,
        };
        let report = judging::report(&inputs, failure, &subject.settings)?;
        let probes = judging::probe_answers(&judged, &subject.probes);
        Ok(Evaluation {
            report,
            table: tables.1,
            rounds,
            judged,
            probes,
        })
    }

    fn against(
        &self,
        baseline: &MeasuredBaseline,
        subject: &SubjectInput<'_>,
        requests: &[Request],
    ) -> Result<Measured> {
        let known = Baseline {
            weights: subject.base,
            table: &baseline.table,
            changed: &subject.changed,
            reference: baseline.reference.as_ref(),
            hidden: baseline.hidden.as_ref(),
            moments: Some(&baseline.moments),
        };
        self.measure(
            subject.weights,
            &baseline.windows,
            requests,
            Some(known),
            None,
        )
    }

    fn measure(
        &self,
        weights: &dyn Weights,
        windows: &Windows,
        requests: &[Request],
        baseline: Option<Baseline<'_>>,
        keep: Option<KeepPolicy>,
    ) -> Result<Measured> {
        let request = MeasureRequest {
            weights,
            device: self.device,
            windows,
            requests,
            baseline,
            keep,
            probe: Some(&|request, meta, tensor| {
                self.guards.probe(request, meta, tensor, self.device)
            }),
            cancel: Some(self.cancel),
        };
        Ok(self.device.install(|| measure(&request))?)
    }
}

/// What is known while guards judge: it grows with what they ask for in further rounds.
struct Known<'a> {
    evaluator: &'a Evaluator<'a>,
    baseline: &'a MeasuredBaseline,
    subject: &'a SubjectInput<'a>,
    /// Of the baseline and of the subject.
    tables: (Table, Table),
    /// The baseline's rows that its own table lacks.
    rounds: Table,
}

impl Known<'_> {
    /// Measures what the baseline's table lacks of some requests.
    fn measure_baseline(&mut self, wanted: &[Request]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let windows = &self.baseline.windows;
        let base = self.subject.base;
        let measured = self
            .evaluator
            .measure(base, windows, wanted, None, None)?
            .table;
        let own = &self.baseline.table;
        self.rounds.copy_from(&measured, |scope, quantity| {
            own.get(scope, quantity).is_none()
        });
        let rounds = &self.rounds;
        self.tables.0.copy_from(rounds, |_, _| true);
        Ok(())
    }
}

impl Measurements for Known<'_> {
    fn tables(&self) -> (&Table, &Table) {
        (&self.tables.0, &self.tables.1)
    }

    fn measure(&mut self, wanted: &[Request]) -> Result<()> {
        self.measure_baseline(wanted)?;
        let measured = self
            .evaluator
            .against(self.baseline, self.subject, wanted)?
            .table;
        self.tables.1.copy_from(&measured, |_, _| true);
        Ok(())
    }
}
